"""`python -m benchmarks.fidelity`, as `python3 run.py bench fidelity`."""

from demo.command_line import interruptible, leave


def main() -> int:
    """Run the command; what it imports takes seconds."""
    from demo.quiet import silence_libraries

    silence_libraries()  # before what follows imports their pipelines
    from benchmarks.fidelity import command

    return command.main()


if __name__ == "__main__":
    leave(interruptible(main))
