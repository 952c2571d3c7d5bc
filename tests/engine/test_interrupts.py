"""Signals: the first ends the sweep in order, the second at once."""

import signal
import subprocess
import sys
import time

import pytest

from raysweep.engine.interrupts import SIGNALS, Interrupts


@pytest.fixture(autouse=True)
def terminal():
    """SIGHUP as a terminal leaves it, though the tests themselves run with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_an_interrupt(number):
    before = [signal.getsignal(one) for one in SIGNALS]
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        assert not interrupts.interrupted
        signal.raise_signal(number)
    assert interrupts.interrupted
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_with_nohup_a_closed_terminal_ends_nothing():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGHUP)
        assert not interrupts.interrupted
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_an_alarm_that_another_has_set_is_cancelled():
    """Ray's crash handler arms one on SIGTERM, which would abort the process in the middle of its report."""
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.alarm(30)
        signal.raise_signal(signal.SIGTERM)
    assert signal.alarm(0) == 0


def test_while_something_is_cleaned_up_a_first_signal_waits():
    with Interrupts() as interrupts, interrupts.held():
        signal.raise_signal(signal.SIGINT)
        assert interrupts.interrupted


def test_handlers_that_others_have_put_in_place_can_be_replaced_again():
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        interrupts.install()
        signal.raise_signal(signal.SIGTERM)


def test_outside_the_block_nothing_is_installed():
    before = [signal.getsignal(one) for one in SIGNALS]
    Interrupts().install()
    assert [signal.getsignal(one) for one in SIGNALS] == before


TWICE = """
import signal, sys, time
from raysweep.engine.interrupts import Interrupts
with Interrupts("ended; go on with --resume") as interrupts:
    try:
        print("up", flush=True)
        time.sleep(30)
    except KeyboardInterrupt:
        with interrupts.held():
            print("cleaning", flush=True)
            time.sleep(30)
"""


def test_a_second_signal_ends_the_process_at_once():
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", TWICE], stdout=pipe, stderr=pipe, text=True)
    for word, number in (("up\n", signal.SIGTERM), ("cleaning\n", signal.SIGINT)):
        assert process.stdout.readline() == word
        process.send_signal(number)
    started = time.monotonic()
    _, said = process.communicate(timeout=10)
    assert time.monotonic() - started < 5
    assert process.returncode == -signal.SIGINT  # a shell says 130
    assert said.strip() == "ended; go on with --resume"
