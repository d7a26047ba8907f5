"""What a loaded checkpoint is: of which of our networks, and where its weights lie in files of other projects."""

from collections.abc import Set

# Kinds of files: a name in them that no other kind has, what to call it, and where it belongs.
KINDS = {
    "state": ("vrgnet_state", "a training state", "use the network's own file beside it (..._state_N.pt)"),
    "joint": ("derainet.conv0.0.weight", "a joint derainer, BNet", "use test_syn_joint.py or test_spa_joint.py"),
    "augmented": ("res_conv1.0.weight", "an augmented derainer", "use test_syn_aug.py or test_spa_aug.py"),
    "ED": ("decoder.main.0.weight", "a generator, ED", "it belongs to --netED, ED_state_N.pt"),
    "D": ("l4.0.module.weight_bar", "a critic, D", "only joint training uses it, D_state_N.pt"),
}
REMEDY = (  # where names or shapes differ
    "Set the flags of the network (--nz, --nef, --ndf, --patchSize, --derainer, --derainer_args) as in its training. "
    "If it is of another network (PRN, or PReNet with a GRU, say): test_syn_aug.py --derainer path/to/file.py:Class "
    "tests it, with its authors' code."
)
WANTED = "Wanted are weights of PyTorch: a state_dict in a .pt, .pth or .safetensors file"
# How files begin that are no weights of PyTorch (and what torch.load says of archives) -> what they are, the remedy.
FOREIGN = {
    rb"\Z|Ran out of input": ("is empty", "Fetch it again"),
    rb"\s*<": ("is a web page", "Fetch the file itself (on GitHub: 'Download raw file')"),
    rb"version https://git-lfs": ("is a pointer of Git LFS, not the file", "Fetch the file: git lfs pull"),
    rb"\x08.[\x12\x1a\x22\x2a\x32\x3a\x42]": ("is an ONNX model", WANTED),
    rb"\x89HDF": ("is an HDF5 file: a pack of images, or of Keras", WANTED),
    rb"PK.*TorchScript": ("is a TorchScript program", WANTED),
    rb"\x1f\x8b|7z|Rar!|PK.*(not found|not in a subdirectory)": ("is an archive", "Unpack it, and name the file in it"),
}
# What saving from DataParallel, torch.compile or a network around the network puts before all names.
_PREFIXES = ("", "module.", "_orig_mod.", "net.", "model.", "network.", "netG.", "generator.")


def kind_of(content: object) -> str | None:
    """What a loaded file, or the state dict of a network, is: a key of ``KINDS`` or None."""
    names = content if isinstance(content, dict) else {}
    return next((kind for kind, (name, *_) in KINDS.items() if name in names), None)


def unwrapped(content: object, names: Set[str], where: str) -> object:
    """The weights in a file as other projects publish them, {"params": {"module.conv.weight": ...}}; says what it took.

    Args:
        content: what was read.
        names: of the network's own weights; they decide which part of the file counts. Where no part has them it is
            one of another kind of network, for the message.
        where: names the file.

    Returns:
        A state dict, or ``content`` where there is none in it.
    """
    if not isinstance(content, dict):
        return content
    parts = {"": content} | {str(key): part for key, part in content.items() if isinstance(part, dict)}
    in_turn = sorted(parts, key=lambda part: "ema" not in part)  # an average is better than the weights
    for wanted in (names, *({name} for name, *_ in KINDS.values())):
        for part, prefix in ((part, prefix) for part in in_turn for prefix in _PREFIXES):
            inside = {str(key): value for key, value in parts[part].items() if str(key).startswith(prefix)}
            state = {key.removeprefix(prefix): value for key, value in inside.items()}
            if wanted <= state.keys():
                if part or prefix:
                    text = f"taking {part or 'the weights'}" + (f", what stands behind {prefix!r}" if prefix else "")
                    print(f"{where}: {text}")
                return state
    return content
