"""Refusals: each carries one sentence for the user and the exit code of the process."""


class VirNucProError(Exception):
    """A refusal whose text says what is wrong, where, and what to do."""

    exit_code = 1


class MachineError(VirNucProError):
    """A disk is full, fails, or a limit of the machine is reached; no file is to blame for it."""


class BusyError(VirNucProError):
    """Another process is at work on the same files."""


class InputError(VirNucProError):
    """Bad input or usage."""

    exit_code = 2


class ModelError(VirNucProError):
    """A model is missing, or does not verify."""

    exit_code = 3


class GpuMemoryError(VirNucProError):
    """A GPU's memory does not hold the work; a smaller token budget or a larger GPU may."""

    exit_code = 4


class StoppedError(VirNucProError):
    """Stopped by a signal, or for want of memory; the same command goes on where it stood."""

    exit_code = 75
