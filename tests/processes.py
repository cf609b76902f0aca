"""Run a function in forked children: alone or as one group of processes, and as killable as a real run."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable

from adapt import cli


def as_command(main: Callable, config: object) -> None:
    """As the command line does: with its lines on the standard error, and its statuses. In a child."""
    cli.parse = lambda *_: config
    cli.run(main, type(config))


def in_children(function: Callable[[], object], world: int = 1, along: bool = True) -> list[int]:
    """Exit status of each child (negative: the signal that ended it). One killed takes the rest `along`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sys.stdout.flush()
    children = {}
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            _child(function, rank, world, port)
        children[pid] = rank
    statuses = [0] * world
    while children:
        pid, status = os.wait()
        if pid in children:
            statuses[children.pop(pid)] = os.waitstatus_to_exitcode(status)
            if os.WIFSIGNALED(status) and along:
                for other in children:
                    os.kill(other, signal.SIGKILL)
    return statuses


def _child(function: Callable[[], object], rank: int, world: int, port: int) -> None:
    status = 1
    try:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        if world > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(world),
                LOCAL_WORLD_SIZE=str(world),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                ACCELERATE_USE_CPU="true",
                GLOO_SOCKET_IFNAME="lo",
            )
        function()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
