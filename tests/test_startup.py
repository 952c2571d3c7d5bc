"""Memory that is kept between steps and given back between trials."""

import subprocess
import sys
import textwrap

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_freed_memory_is_kept_until_it_is_given_back():
    code = """
    import psutil
    from raysweep.startup import free_memory, keep_freed_memory

    def used():
        return psutil.Process().memory_info().rss

    keep_freed_memory()
    before = used()
    block = bytearray(100 * 2**20)
    del block
    kept = used() - before
    free_memory()
    print(kept // 2**20, (used() - before) // 2**20)
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    kept, left = map(int, said.stdout.split())
    assert kept > 90
    assert left < 20
