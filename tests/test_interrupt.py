"""Waiting for what computes outside Python."""

import _thread
import threading
import time

import pytest

from forensics.interrupt import waiting


def test_the_work_gives_its_result_or_its_error():
    assert waiting(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        waiting(lambda: 1 // 0)
    inside = []
    worker = threading.Thread(target=lambda: inside.append(waiting(lambda: 8)))
    worker.start()
    worker.join()
    assert inside == [8]


def test_an_interrupt_ends_the_wait_and_not_the_work():
    done = threading.Event()

    def work():
        _thread.interrupt_main()
        time.sleep(0.2)
        done.set()

    with pytest.raises(KeyboardInterrupt):
        waiting(work)
    assert done.wait(5)
