"""A CUDA graph for the CPU: it records every tensor operation and replays them on the same memory.

Like a CUDA graph it runs no Python again, keeps every address, and refuses operations that wait for a value or take
one from Python. A step that it replays correctly depends on tensors alone. It has no streams and no memory pools.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}
FROM_PYTHON = {"lift_fresh", "lift_fresh_copy"}  # torch.tensor(3.0) within a step


def _tensors(tree):
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]


def _memory(x):
    return x.untyped_storage()._cdata


class _Notes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.notes = []
        self._made = set()  # memory allocated during the recording
        self._before = {}  # old content of other memory that it wrote to

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function._overloadpacket.__name__, kwargs or {}
        if name in WAITS | FROM_PYTHON:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if name in ("index", "index_put_") and any(x.dtype == torch.bool for x in _tensors(args[1])):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name} by a mask")
        if function._schema.is_mutable:
            self._save(_tensors((args, kwargs)))
        results = function(*args, **kwargs)
        given = {_memory(x) for x in _tensors((args, kwargs))}
        fresh = [_memory(x) not in given for x in _tensors(results)]
        self._made |= {_memory(x) for x, made in zip(_tensors(results), fresh, strict=True) if made}
        if any(fresh) or function._schema.is_mutable:  # a view needs no replay
            self.notes.append((function, args, kwargs, _tensors(results), fresh))
        return results

    def _save(self, tensors):
        for x in tensors:
            if _memory(x) not in self._made | self._before.keys():
                self._before[_memory(x)] = x.untyped_storage(), x.untyped_storage().clone()

    def undo(self):
        for storage, before in self._before.values():
            storage.copy_(before)


class Tape:
    """Stands in for a ``common.training.graphs.CudaRecorder``; ``recorded``, ``replayed`` count what it did."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def run(self, work):
        return work()

    def record(self, work):
        """Unlike a GPU this runs the work; so its writes are undone."""
        notes = _Notes()
        try:
            with notes:
                results = work()
        finally:
            notes.undo()
        self.recorded, self.notes = self.recorded + 1, notes.notes
        return results, lambda: self._replay(notes.notes)

    @torch.no_grad()
    def _replay(self, notes):
        self.replayed += 1
        for function, args, kwargs, results, fresh in notes:
            again = _tensors(function(*args, **kwargs))
            for old, new, made in zip(results, again, fresh, strict=True):
                if made:
                    old.copy_(new)
