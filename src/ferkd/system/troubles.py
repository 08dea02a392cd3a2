"""What libraries say in words of their own when the machine, not ferkd, is short of something."""

from __future__ import annotations

_SHARED_MEMORY = ("/torch_", "shared memory", "Bus error", "/dev/shm", "DataLoader worker")


def in_plain_words(error: BaseException) -> str | None:
    """A message with the cause and the remedy; None for an error that is not of this kind."""
    text = str(error)
    if isinstance(error, RuntimeError | OSError) and any(word in text for word in _SHARED_MEMORY):
        return (
            f"shared memory for loading processes is too small ({text.splitlines()[0]}); use "
            "data.worker_kind=threads, fewer data.workers, or give more (docker run --shm-size=8g)"
        )
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"the device has too little memory ({text.splitlines()[0][:160]}); lower the batch "
            "size, use precision bf16, or another device"
        )
    return None
