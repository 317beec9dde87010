"""`python -m benchmarks.fidelity`, as `python3 run.py bench fidelity`."""

from demo.command_line import interruptible, leave, silence_libraries


def main() -> int:
    """Run the command; what it imports takes seconds."""
    silence_libraries()  # before what follows imports their pipelines
    from benchmarks.fidelity import command

    return command.main()


if __name__ == "__main__":
    leave(interruptible(main))
