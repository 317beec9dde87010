"""Command line: `python -m training [STAGE ...] --out runs/demo`."""

from demo.command_line import interruptible, leave


def main() -> int:
    """Run the trainer; what it imports takes seconds."""
    from training.command import main as train

    return train()


if __name__ == "__main__":
    leave(interruptible(main))
