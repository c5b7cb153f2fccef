"""What can go wrong, as one tree.

::

    HpcpsError                a message of one line: the thing, the ranks, the step, the remedy
    ├── ConfigError           the configuration or the command line            exit status 2
    ├── DataError             a data file, a sample, a label                   exit status 2
    ├── ModelError            a model, or the user's own training function     exit status 2
    │   └── NotFiniteError    its loss or gradient is NaN or infinite
    ├── CheckpointError       checkpoints, none of which can be used           exit status 2
    ├── StoppedError          no error: told to stop, after a checkpoint       exit status 75
    └── CommError             ranks talking to ranks                           exit status 3
        ├── CommTimeout       nothing came within the timeout
        └── PeerLost          another rank ended or failed

Anything else that escapes is a bug in hpcps: a traceback and exit status 1.
"""

from __future__ import annotations

ERROR = "hpcps: error: "
"""How the line begins that says what is wrong."""

WARNING = "hpcps: warning: "
"""And of what goes on in spite of it"""


class HpcpsError(Exception):
    """Base of every error that hpcps raises on purpose. ``exit_status`` is what the program ends with.

    ``known_to_all``: the same error is raised on every rank of the job, so that one need say it and none is left
    waiting.
    """

    exit_status = 1
    known_to_all = False

    def __init__(self, message: object = "") -> None:
        """Line breaks, as a name of the user's may have them, become blanks."""
        super().__init__(" ".join(str(message).splitlines()))


class ConfigError(HpcpsError):
    """A key, value or command-line option that cannot be used. The message names it."""

    exit_status = 2


class DataError(HpcpsError):
    """A file, sample or label that cannot be used. The message names the file and the line or sample."""

    exit_status = 2


class ModelError(HpcpsError):
    """A model, or a user's training function, that raised or returned something unusable."""

    exit_status = 2


class NotFiniteError(ModelError):
    """A loss, a gradient or a score that is NaN or infinite: the samples, or the training, may be the cause."""


class CheckpointError(HpcpsError):
    """A checkpoint that cannot be read, or is of another run. The message names the file or the key."""

    exit_status = 2


class StoppedError(HpcpsError):
    """The run was told to stop and has written a checkpoint: the same command goes on from there."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again later


class CommError(HpcpsError):
    """Ranks could not talk to each other."""

    exit_status = 3


class CommTimeout(CommError):  # noqa: N818  (named like concurrent.futures' own timeouts)
    """Nothing came from a peer within the timeout. The message names the peer and the operation."""


class PeerLost(CommError):  # noqa: N818
    """Another rank ended or failed. The message names it."""
