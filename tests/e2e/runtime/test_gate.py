"""A container whose maker is gone: started, entered and deleted by processes that know it by its state alone."""

from __future__ import annotations

import json
import os
import select
from typing import TYPE_CHECKING

import pytest

from runtime import state
from runtime.container import Container, CreateOptions, CreateRequest, ExecRequest
from runtime.errors import InvalidState, ManorError, NotFound
from runtime.operations.create import create
from runtime.operations.delete import delete, delete_by_force
from runtime.operations.exec import exec_
from runtime.operations.kill import kill
from runtime.operations.load import container_ids, load, oci_state
from runtime.operations.start import start
from runtime.spec.load import load_process, load_spec
from runtime.stages.plan import DIRECT, STAGED, Stdio
from runtime.waiting import run
from tests.harness.bundles import Bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.runtime.conftest import Runner

OPTIONS = CreateOptions(gate=True)


@pytest.fixture(params=[DIRECT, STAGED])
def way(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Not apart: here it is another process that makes the container in any case."""
    return request.param, False


OPENED: list[Container] = []


@pytest.fixture
def cleaned(runner: Runner) -> Iterator[None]:
    """What `loaded` has opened is closed, and whatever a test leaves is deleted by force."""
    yield
    while OPENED:
        OPENED.pop().leave()
    for name in container_ids(runner.host):
        run(delete_by_force(runner.host, name))


pytestmark = pytest.mark.usefixtures("cleaned")


def made_by_another(runner: Runner, bundle: Bundle) -> str:
    """Create the container in a child that ends; its id."""
    spec, name = load_spec(bundle.write()), bundle.path.name
    pid = os.fork()
    if not pid:
        code = 1
        try:
            request = CreateRequest(name, str(bundle.path), spec, Stdio(), runner.shape, options=OPTIONS)
            run(create(runner.host, request)).leave()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    return name


def status(runner: Runner, name: str) -> str:
    container = load(runner.host, name)
    container.leave()
    return container.status


def loaded(runner: Runner, name: str) -> Container:
    container = load(runner.host, name)
    OPENED.append(container)
    return container


def test_it_lives_through_the_end_of_its_maker(runner: Runner) -> None:
    name = made_by_another(runner, runner.bundle("sleep", "1000"))
    container = loaded(runner, name)
    assert (container.status, container_ids(runner.host)) == (state.CREATED, [name])
    run(start(container))
    assert status(runner, name) == state.RUNNING
    assert oci_state(container)["pid"] == container.pid
    process = load_process(json.dumps(Bundle.process(["true"])).encode())
    tenant = run(exec_(loaded(runner, name), ExecRequest(process, Stdio(), runner.shape)))
    tenant.pidfd.close()
    assert os.WEXITSTATUS(os.waitpid(tenant.pid, 0x40000000)[1]) == 0
    kill(container, 9)
    await_end(container)
    assert status(runner, name) == state.STOPPED
    run(delete(loaded(runner, name)))
    with pytest.raises(NotFound, match=f"container {name} does not exist"):
        load(runner.host, name)


def await_end(container: Container) -> None:
    poll = select.poll()
    poll.register(container.pidfd.fileno(), select.POLLIN)
    assert poll.poll(10_000), "init did not end"


def test_it_is_started_once(runner: Runner) -> None:
    name = made_by_another(runner, runner.bundle("sleep", "1000"))
    first, second = loaded(runner, name), loaded(runner, name)
    run(start(first))
    with pytest.raises(InvalidState, match="nobody waits at its start gate"):
        run(start(second))
    with pytest.raises(InvalidState, match=f"cannot start container {name} in running state"):
        run(start(loaded(runner, name)))


def test_why_it_could_not_be_executed_reaches_who_starts_it(runner: Runner) -> None:
    bundle = runner.bundle("/tmp/odd")
    odd = bundle.path / "rootfs/tmp/odd"
    bundle.write()
    odd.write_bytes(b"\x7fELF, but no more than that")
    odd.chmod(0o755)
    name = made_by_another(runner, bundle)
    with pytest.raises(ManorError, match="exec /tmp/odd: exec format error"):
        run(start(loaded(runner, name)))


def test_deleted_at_its_gate_it_is_ended(runner: Runner) -> None:
    name = made_by_another(runner, runner.bundle("sleep", "1000"))
    container = loaded(runner, name)
    run(delete(loaded(runner, name)))
    await_end(container)
    assert container_ids(runner.host) == []


def test_an_id_in_use_is_refused_and_the_first_container_is_untouched(runner: Runner) -> None:
    bundle = runner.bundle("sleep", "1000")
    name = made_by_another(runner, bundle)
    request = CreateRequest(
        name, str(bundle.path), load_spec(bundle.write()), Stdio(), runner.shape, options=OPTIONS
    )
    with pytest.raises(ManorError, match=f"container {name} exists already"):
        run(create(runner.host, request))
    assert status(runner, name) == state.CREATED


def test_force_removes_what_only_a_directory_is_left_of(runner: Runner) -> None:
    directory = state.make_directory(runner.host.root, "half", traversable=False)
    with pytest.raises(NotFound):
        load(runner.host, "half")
    run(delete_by_force(runner.host, "half"))
    assert not os.path.exists(directory)
    with pytest.raises(NotFound, match="container half does not exist"):
        run(delete_by_force(runner.host, "half"))


def test_force_ends_a_container_whose_state_another_version_wrote(runner: Runner) -> None:
    name = made_by_another(runner, runner.bundle("sleep", "1000"))
    container = loaded(runner, name)
    run(start(container))
    file = f"{container.directory()}/{state.STATE_FILE}"
    with open(file) as stream:
        known = json.load(stream)
    known |= {"version": 99, "a new field": 1}
    with open(file, "w") as stream:
        json.dump(known, stream)
    with pytest.raises(InvalidState, match="version 99 is of a newer Manor"):
        load(runner.host, name)
    run(delete_by_force(runner.host, name))
    await_end(container)
    assert container_ids(runner.host) == []


def test_force_removes_a_container_whose_state_is_damaged(runner: Runner) -> None:
    directory = state.make_directory(runner.host.root, "odd", traversable=False)
    with open(f"{directory}/{state.STATE_FILE}", "w") as file:
        file.write('{"version": 1}')
    with pytest.raises(InvalidState, match="state of container odd is damaged"):
        load(runner.host, "odd")
    warnings = run(delete_by_force(runner.host, "odd"))
    assert "damaged" in warnings[0]
    assert container_ids(runner.host) == []
