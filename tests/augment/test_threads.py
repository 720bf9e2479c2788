"""Compiled work in Python threads: every call is made, errors arrive, and a forked process can go on."""

import os
import threading

import pytest

from fastft.augment.threads import run_in_threads


@pytest.mark.parametrize("threads", [1, 3, 2 * (os.cpu_count() or 1) + 1])
def test_every_thread_number_is_called_once(threads):
    seen = []
    run_in_threads(lambda thread, *arguments: seen.append((thread, *arguments)), threads, "a", 1)
    assert sorted(seen) == [(thread, "a", 1) for thread in range(threads)]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_any_thread_is_raised_after_all_have_finished(failing):
    finished = []

    def work(thread):
        if thread == failing:
            raise OSError(f"thread {thread}")
        finished.append(thread)

    with pytest.raises(OSError, match=f"thread {failing}"):
        run_in_threads(work, 3)
    assert sorted(finished) == sorted({0, 1, 2} - {failing})


def test_a_forked_process_has_threads_of_its_own():
    """The threads of the parent do not exist in its fork, which would wait for them for ever."""
    run_in_threads(lambda thread: None, 3)
    child = os.fork()
    if child == 0:
        watchdog = threading.Timer(20, os._exit, [3])
        watchdog.daemon = True
        watchdog.start()
        run_in_threads(lambda thread: None, 3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
