"""As sitecustomize in the box: where there is no GPU, a program that asks for CUDA gets the CPU, and so do its models.

It waits until the program imports torch; a line in what it prints says when CUDA was asked for.
"""

import functools
import importlib.abc
import importlib.util
import sys

SAID = "note: this machine has no GPU; cuda is read as cpu."


class AfterTorch(importlib.abc.MetaPathFinder):
    """Patches torch once it has been imported."""

    def find_spec(self, name, path=None, target=None):
        """Torch's own spec, with a loader that patches the module at the end."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_patch(module):
                load(module)
                if not module.cuda.is_available():
                    patch(module)
            spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec


def patch(torch) -> None:
    """cuda -> cpu, in calls of torch's functions, of modules and tensors, and in `torch.load`."""
    told: list[None] = []

    def on_cpu(value):
        named = isinstance(value, str) and value.partition(":")[0] == "cuda"
        if not named and not (isinstance(value, torch.device) and value.type == "cuda"):
            return value
        if not told:
            told.append(None)
            print(SAID, file=sys.stderr, flush=True)
        return "cpu" if named else torch.device("cpu")

    def moved(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            return function(*map(on_cpu, args), **{key: on_cpu(value) for key, value in kwargs.items()})
        return call

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return moved(function)(*args, **(kwargs or {}))

    Mode().__enter__()
    def stay(self, *_, **__):
        on_cpu("cuda")
        return self

    for kind in (torch.Tensor, torch.nn.Module):
        kind.to, kind.cuda = moved(kind.to), stay
    load = torch.load

    @functools.wraps(load)
    def load_on_cpu(file, map_location=None, **kwargs):
        return load(file, map_location="cpu" if map_location is None else on_cpu(map_location), **kwargs)
    torch.load = load_on_cpu


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, AfterTorch())
