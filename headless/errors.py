"""What can go wrong, said in one line: what is wrong, where it was looked for, what to do."""


class AtelierError(Exception):
    """A bad call or a failed step. The text is one line for the user; the command prints it and exits with code 2."""


class ServerError(AtelierError):
    """Nothing answers, what answers is not ComfyUI, or the connection broke."""


class RejectedError(AtelierError):
    """ComfyUI refused a workflow before running it. The text holds the messages of the nodes."""


class ExecutionError(AtelierError):
    """A node failed while the workflow ran. The text names the node and holds its message."""


class InterruptedRun(AtelierError):
    """The run was cancelled on the server, by this program or by someone else."""
