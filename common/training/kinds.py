"""What a loaded checkpoint is: of which network, and where its weights lie in files of other projects."""

import re
from collections.abc import Iterator, Set

from torch import Tensor

_OTHER = "test_syn_aug.py --derainer path/to/file.py:Class tests it, with its authors' code"
# What a state dict looks like -> what to call it, and where it belongs.
KINDS = {
    "joint": ("a joint derainer, BNet (DerainNet_state)", "use test_syn_joint.py or test_spa_joint.py"),
    "augmented": ("an augmented derainer", "use test_syn_aug.py or test_spa_aug.py"),
    "ED": ("a generator, ED", "it belongs to --netED, ED_state_N.pt"),
    "own": ("the network of --derainer", "name it with --derainer"),
    "D": ("a critic, D", "only joint training uses it, D_state_N.pt"),
    "state": (
        "a training state",
        "use the network's own file beside it (..._state_N.pt); the training goes on from it",
    ),
    "PReNet_r": ("PReNet_r, a PReNet with one residual block for all", "use test_syn_aug.py or test_spa_aug.py"),
    "PRN": ("PRN, a PReNet without its LSTM", _OTHER),
    "PRN_r": ("PRN_r, a PReNet without its LSTM and with one residual block for all", _OTHER),
    "PReNet_x": ("PReNet_x, a PReNet whose stages do not see the rainy image", _OTHER),
    "ablation": ("a PReNet with another recurrent unit than the LSTM (GRU, say)", _OTHER),
}
_WANTED = "Wanted are weights of PyTorch: a state_dict in a .pt, .pth or .safetensors file"
# How files begin that are no weights of PyTorch (and what torch.load says of archives) -> what they are, the remedy.
FOREIGN = {
    rb"\Z|Ran out of input": ("is empty", "Fetch it again"),
    rb"\s*<": ("is a web page", "Fetch the file itself (on GitHub: 'Download raw file')"),
    rb"version https://git-lfs": ("is a pointer of Git LFS, not the file", "Fetch the file: git lfs pull"),
    rb"\x08.[\x12\x1a\x22\x2a\x32\x3a\x42]": ("is an ONNX model", _WANTED),
    rb"\x89HDF": ("is an HDF5 file: a pack of images, or of Keras", _WANTED),
    rb"PK.*TorchScript": ("is a TorchScript program", _WANTED),
    rb"\x1f\x8b|7z|Rar!|PK.*(not found|not in a subdirectory)": (
        "is an archive",
        "Unpack it, and name the file in it",
    ),
}
# What to do where names or shapes differ; PReNet and BNet have no sizes to set.
REMEDIES = {
    "ED": "Set the flags of the network (--nz, --nef, --patchSize) as in its training.",
    "D": "Set the flags of the network (--ndf, --patchSize) as in its training.",
    "own": "Give --derainer and --derainer_args as in its training.",
    "augmented": f"If it is of another network: {_OTHER}.",
}
# What saving from DataParallel, torch.compile or a network around the network puts before all names.
_PREFIXES = ("module.", "_orig_mod.", "net.", "model.", "network.", "netG.", "generator.")


def kind_of(content: object) -> str | None:
    """What a loaded file is: a key of ``KINDS`` ('joint', 'augmented', 'ED', 'D', 'state', ...) or None."""
    if not isinstance(content, dict):
        return None
    keys = {str(key) for key in content}
    if "vrgnet_state" in keys:
        return "state"
    if any(key.startswith("derainet.") for key in keys):
        return "joint"
    if {"conv0.0.weight", "conv.0.weight", "res_conv1.0.weight"} <= keys:
        return _kind_of_prenet(content)
    if any(key.startswith("encoder.main.") for key in keys):
        return "ED"
    return "D" if "l4.0.module.weight_bar" in keys else None


def _kind_of_prenet(content: dict) -> str:
    """Which of the networks that PReNet's repository publishes."""
    gates = {key for key in content if re.fullmatch(r"conv_\w+\.0\.weight", str(key))}
    one_block = "res_conv2.0.weight" not in content
    if not gates:
        return "PRN_r" if one_block else "PRN"
    if gates != {f"conv_{gate}.0.weight" for gate in "ifgo"}:
        return "ablation"
    if getattr(content["conv0.0.weight"], "shape", ())[1:2] == (3,):
        return "PReNet_x"
    return "PReNet_r" if one_block else "augmented"


def unwrapped(content: object, names: Set[str], kind: str, where: str) -> object:
    """The weights in a file as other projects publish them, {"params": {"module.conv.weight": ...}}; says what it took.

    Args:
        content: what was read. Of several state dicts in it that one counts which fits the network, then an average
            (ema), then the first.
        names: of the network's own weights.
        kind: what is expected, see ``kind_of``.
        where: names the file.

    Returns:
        A state dict, or ``content`` where there is none in it.
    """
    if kind_of(content) == "state":
        return content
    parts = [(name, *_bare(part, names)) for name, part in _state_dicts(content)]
    if not parts:
        return content

    def rank(part: tuple[str, dict, str]) -> tuple[bool, bool]:
        name, state, _ = part
        return not (names <= state.keys() or kind_of(state) == kind), "ema" not in name.lower()

    name, state, prefix = taken = min(parts, key=rank)
    if name or prefix:
        others = ", ".join(part[0] for part in parts if part is not taken)
        text = f"taking {name or 'the weights'}" + (f", what stands behind {prefix!r}" if prefix else "")
        print(f"{where}: {text}{f'; also there: {others:.200}' if others else ''}")
    return state


def _state_dicts(content: object, name: str = "", depth: int = 2) -> Iterator[tuple[str, dict]]:
    """The state dicts in a file, and under which names they lie there."""
    if not isinstance(content, dict) or not content:
        return
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield name, content
    elif depth:
        for key, value in content.items():
            yield from _state_dicts(value, f"{name}.{key}" if name else str(key), depth - 1)


def _bare(state: dict, names: Set[str]) -> tuple[dict, str]:
    """A state dict without what stands before all names, or before those of the network; and what that was."""
    words = ""
    while not names <= state.keys():
        for prefix in _PREFIXES:
            inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            foreign = len(inside) == len(state) and not any(name.startswith(prefix) for name in names)
            if names <= inside.keys() or foreign:
                state, words = inside, words + prefix
                break
        else:
            break
    return state, words
