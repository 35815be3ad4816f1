"""ComfyUI from outside: a client of its HTTP and websocket API, standard library only. See `Client`."""
from .client import Client, Progress
from .errors import AtelierError, ExecutionError, InterruptedRun, RejectedError, ServerError

__all__ = ["AtelierError", "Client", "ExecutionError", "InterruptedRun", "Progress", "RejectedError", "ServerError"]
