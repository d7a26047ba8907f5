"""The memory that is free in containers, by a file system of the test."""

import pytest

from common.memory import free_memory

MEGA = 10**6
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def system(root, groups, lines):
    """A machine with 5000 MB free; groups: folder -> (limit, used, pages of files) in MB, lines: what /proc says."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 4882812 kB\n")
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))
    for folder, values in groups.items():
        names, folder = V1 if folder.startswith("memory") else V2, root / "sys/fs/cgroup" / folder
        folder.mkdir(parents=True, exist_ok=True)
        limit, used, pages = (value if value == "max" else int(value * MEGA) for value in values)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\nfile 3\n{names[2]} {pages}\nactive_file 7\n")
    return root


@pytest.mark.parametrize(
    "lines, groups, free",
    [
        (["0::/"], {"": (2000, 500, 100)}, 1600),  # Docker, Kubernetes
        (["0::/"], {"": ("max", 500, 0)}, 5000),
        (["0::/"], {"": (1000, 1100, 0)}, 0),
        (  # SLURM: the limit stands above the group of the process
            ["0::/slurm/job_1/step_0"],
            {"slurm/job_1": (3000, 2500, 0), "slurm/job_1/step_0": ("max", 100, 0), "slurm/job_2": (1, 1, 0)},
            500,
        ),
        (["12:pids:/a", "4:cpu,memory:/jobs/7"], {"memory/jobs/7": (9e12, 1, 0), "memory/jobs": (900, 600, 200)}, 500),
        (["4:memory:/docker/abc"], {"memory": (2000, 500, 0)}, 1500),  # its own group lies at the root
        (["no cgroups"], {"": (1, 0, 0)}, 5000),
    ],
)
def test_what_is_free_in_a_container(tmp_path, lines, groups, free):
    assert free_memory(system(tmp_path, groups, lines=lines)) == pytest.approx(free * MEGA, rel=1e-6)


def test_where_the_system_says_little(tmp_path):
    assert free_memory(tmp_path) == 8 * 2**30
    root = system(tmp_path, {"": (2000, 500, 0)}, lines=["0::/"])
    (root / "sys/fs/cgroup/memory.current").unlink()
    assert free_memory(root) == 2000 * MEGA
