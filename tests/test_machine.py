"""Cores and memory that control groups allow, with made-up files for /proc and /sys."""

import os

import psutil
import pytest

from hasn_cli.machine import count_cores, free_memory, total_memory

MIB = 2**20


@pytest.fixture
def system(tmp_path):
    """A function that writes files below a folder that replaces the system's root."""

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(str(text) + "\n")
        return tmp_path

    return write


def second_version(path, **files):
    folder = f"sys/fs/cgroup{path}"
    return {"proc/self/cgroup": f"0::{path}"} | {f"{folder}/{k.replace('_', '.', 1)}": v for k, v in files.items()}


def test_without_control_groups_the_machine_is_the_limit(tmp_path):
    assert total_memory(tmp_path) == psutil.virtual_memory().total
    assert free_memory(tmp_path) <= psutil.virtual_memory().total
    assert 1 <= count_cores(tmp_path) <= (os.cpu_count() or 1)


def test_the_real_system_is_understood():
    assert 0 < free_memory() <= total_memory() <= psutil.virtual_memory().total
    assert 1 <= count_cores() <= (os.cpu_count() or 1)


def test_a_limit_of_memory_is_seen(system):
    files = {"memory_max": 100 * MIB, "memory_current": 70 * MIB, "memory_stat": f"anon 1\ninactive_file {20 * MIB}"}
    root = system(second_version("/", **files))
    assert total_memory(root) == 100 * MIB
    assert free_memory(root) == 50 * MIB, "files in the cache make room when asked"


def test_max_means_no_limit(system):
    root = system(second_version("/", memory_max="max", memory_current=70 * MIB, cpu_max="max 100000"))
    assert total_memory(root) == psutil.virtual_memory().total
    assert count_cores(root) == count_cores(root / "nowhere")


def test_a_group_above_limits_too(system):
    root = system(second_version("/slice/job", memory_max=200 * MIB, memory_current=0))
    system({"sys/fs/cgroup/slice/memory.max": 100 * MIB, "sys/fs/cgroup/slice/memory.current": 90 * MIB})
    assert total_memory(root) == 100 * MIB
    assert free_memory(root) == 10 * MIB


def test_a_container_that_is_named_as_its_host_names_it_finds_its_own_mount(system):
    root = system(
        {
            "proc/self/cgroup": "4:memory:/docker/0123\n3:cpu,cpuacct:/docker/0123\n0::/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 300 * MIB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 200 * MIB,
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {50 * MIB}",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": 50000,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
        }
    )
    assert total_memory(root) == 300 * MIB
    assert free_memory(root) == 150 * MIB
    assert count_cores(root) == 1, "half a core is one thread's"


def test_no_limit_in_the_first_version_is_a_number_beyond_all_memory(system):
    root = system(
        {
            "proc/self/cgroup": "4:memory:/\n3:cpu:/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 5,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1,
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
        }
    )
    assert total_memory(root) == psutil.virtual_memory().total
    assert count_cores(root) == count_cores(root / "nowhere")


@pytest.mark.parametrize(("quota", "cores"), [("100000 100000", 1), ("1000000 100000", 10), ("150000 100000", 2)])
def test_a_share_of_time_is_a_number_of_cores(system, quota, cores):
    root = system(second_version("/", cpu_max=quota))
    assert count_cores(root) == min(cores, count_cores(root / "nowhere"))


def test_more_used_than_allowed_leaves_nothing(system):
    assert free_memory(system(second_version("/", memory_max=MIB, memory_current=2 * MIB))) == 0
