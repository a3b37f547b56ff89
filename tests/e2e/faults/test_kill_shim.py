"""A shim is killed in the middle of any step of a Create; then `delete`, of another container of its pod at that,
leaves nothing.

What there is by then is known from the pod's directory alone. Who makes it ends with the shim, and `delete` waits for
that: nothing is made behind its back. The pod's lock and notes are the shim's own, as is the mount of a root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from runtime import trace
from runtime.linux import mount as m
from runtime.operations.apart import ApartRequest, create_apart
from runtime.stages.plan import DIRECT, STAGED, Stdio
from runtime.waiting import run
from shim import deed
from shim.delete import Remains
from shim.rootfs_mounts import unmount
from tests.e2e.faults.conftest import Leaks, Runner, Watch, rich
from tests.e2e.faults.test_every_step import Life, reach
from tests.e2e.faults.test_kill import killed


@pytest.fixture(params=[DIRECT, STAGED])
def way(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Both shapes, by a creating process."""
    return request.param, True


class ShimsLife(Life):
    """As a shim makes its container: with the pod's directory locked, and a root that is mounted for it."""

    def create(self) -> None:
        self.held = deed.hold(self.runner.host.root)
        request = ApartRequest(
            self.id,
            str(self.bundle.path),
            Stdio(),
            prepare=self._mount,
            shape=self.runner.shape,
            keep=(self.held.fileno(),),
        )
        self.container = run(create_apart(self.runner.host, request))

    def _mount(self) -> None:
        m.mount(str(self.bundle.rootfs), str(self.bundle.rootfs), None, m.MS_BIND)

    def remove(self) -> None:
        super().remove()
        unmount(str(self.bundle.rootfs))
        held = self.__dict__.pop("held", None)
        if held is not None:
            deed.give_up(self.runner.host.root, held)


@pytest.fixture
def lives(watch: Watch) -> Iterator[list[ShimsLife]]:
    """What a test that fails leaves is removed."""
    made: list[ShimsLife] = []
    yield made
    watch.release()
    trace.planted = None
    for life in made:
        life.remove()


def test_a_shim_killed_at_any_step_of_a_create_leaves_what_any_delete_of_its_pod_removes(
    runner: Runner, watch: Watch, lives: list[ShimsLife]
) -> None:
    def make() -> ShimsLife:
        bundle = runner.bundle("sleep", "1000")
        rich(bundle.config)
        lives.append(ShimsLife(runner, bundle))
        return lives[-1]

    leaks = Leaks(runner)
    places = reach(watch, make)["create"]
    lives[0].remove()
    leaks.check("a life without failures")
    for place in places:
        life = make()
        assert killed(life.create, watch, place), place
        taken = deed.take(runner.host.root, 30)
        assert taken is not None
        with taken:
            remains = Remains(runner.host.root, runner.host.layout)
            remains.remove_all("another", "/nowhere")
        watch.release()
        leaks.check(place)
        assert not os.path.exists(runner.host.root), place
    assert ("main", "prepare root file system") in places
    assert len(places) > 30
