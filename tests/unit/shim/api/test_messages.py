"""The message classes against the tables of protocol facts."""

from __future__ import annotations

import pytest

from shim.api import (
    bootstrap,
    events,
    metrics_v1,
    metrics_v2,
    options,
    pod_config,
    runtime_info,
    sandbox,
    streaming,
    task,
    ttrpc,
    types,
)
from shim.api import message as declarations
from shim.api.message import Field, Message
from tests.wire import oracle, tables

MODULES = (
    *(bootstrap, events, metrics_v1, metrics_v2, options, runtime_info, sandbox, streaming, task, ttrpc),
    types,
)
CLASSES = sorted(
    {
        found
        for module in MODULES
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, Message) and found is not Message
    },
    key=lambda found: found.NAME,
)
# Messages that are others' to write, of which we leave something out.
LEFT_OUT = {"runtime.v1.PodSandboxConfig": {"windows"}}
PARTS = [
    found
    for found in vars(pod_config).values()
    if isinstance(found, type) and issubclass(found, Message) and found is not Message
]

SCALARS = {
    declarations.STRING: ("optional", "string"),
    declarations.BYTES: ("optional", "bytes"),
    declarations.STRING_MAP: ("map", "map<string,string>"),
    declarations.STRINGS: ("repeated", "string"),
    declarations.UINT64S: ("repeated", "uint64"),
    declarations.INT64S: ("repeated", "int64"),
    declarations.UINT32: ("optional", "uint32"),
    declarations.BOOL: ("optional", "bool"),
    declarations.UINT64: ("optional", "uint64"),
    declarations.INT64: ("optional", "int64"),
    declarations.INT32: ("optional", "int32"),
    declarations.DOUBLE: ("optional", "double"),
}


def described(field: Field) -> tuple[str, str, str, str, str]:
    """A declaration in the words of the facts; all enums look alike in it."""
    presence = f"_{field.name}" if field.presence else ""
    if field.kind == declarations.MESSAGE:
        label, type_ = "optional", field.of.NAME
    elif field.kind == declarations.MESSAGES:
        label, type_ = "repeated", field.of.NAME
    elif field.kind in (declarations.ENUM, declarations.ENUMS):
        label, type_ = "optional" if field.kind == declarations.ENUM else "repeated", "enum"
    else:
        label, type_ = SCALARS[field.kind]
    return field.name, str(field.number), label, type_, presence


@pytest.mark.parametrize("message", CLASSES, ids=lambda message: message.NAME)
def test_fields_are_those_of_the_protocol(message: type[Message]) -> None:
    expected = {
        (row.element, row.number, row.label, "enum" if tables.is_enum(row.type) else row.type, row.oneof)
        for row in tables.fields(message.NAME)
    }
    assert {described(field) for field in message.FIELDS} == expected
    assert [field.number for field in message.FIELDS] == sorted(field.number for field in message.FIELDS)


@pytest.mark.parametrize("message", PARTS, ids=lambda message: message.NAME)
def test_fields_of_a_pods_configuration_are_those_of_the_cri(message: type[Message]) -> None:
    declared = {
        (row.element, row.number, row.label, "enum" if tables.is_enum(row.type) else row.type, row.oneof)
        for row in tables.fields(message.NAME)
        if row.element not in LEFT_OUT.get(message.NAME, set())
    }
    assert {described(field) for field in message.FIELDS} == declared
    assert [field.number for field in message.FIELDS] == sorted(field.number for field in message.FIELDS)


@pytest.mark.parametrize("package", tables.SHIM_PACKAGES)
def test_compiled_protos_are_those_of_the_protocol(package: str) -> None:
    declared = {
        row for file in oracle.descriptors().file if file.package == package for row in oracle.rows_of(file)
    }
    expected = set(tables.rows(package))
    if package == "google.protobuf":  # compiled from protobuf's own files, of which the table lists a part
        declared = {row for row in declared if row.full_name in {known.full_name for known in expected}}
    assert declared == expected


def test_every_message_of_the_services_has_a_class() -> None:
    names = {message.NAME for message in CLASSES}
    for package in ("containerd.task.v2", "containerd.runtime.sandbox.v1", "containerd.runtime.bootstrap.v1"):
        assert {row.full_name for row in tables.rows(package) if row.kind == "message"} <= names


@pytest.mark.parametrize(
    ("service", "methods"),
    [
        (task.SERVICE_V2, task.METHODS),
        (sandbox.SERVICE, sandbox.METHODS),
        (events.SERVICE, events.METHODS),
        (streaming.SERVICE, streaming.METHODS),
    ],
    ids=["task", "sandbox", "events", "streaming"],
)
def test_methods_are_those_of_the_service(
    service: str, methods: dict[str, tuple[type[Message], type[Message]]]
) -> None:
    declared = {name: (request.NAME, answer.NAME) for name, (request, answer) in methods.items()}
    assert declared == tables.methods(service)


def test_version_3_of_the_task_service_differs_in_its_name_only() -> None:
    def renamed(row: tables.Row) -> tables.Row:
        return tables.Row(*(cell.replace("containerd.task.v3", "containerd.task.v2") for cell in row))

    assert {renamed(row) for row in tables.rows("containerd.task.v3")} == set(
        tables.rows("containerd.task.v2")
    )
    assert tables.methods(task.SERVICE_V3).keys() == task.METHODS.keys()


def test_enum_values_are_those_of_the_protocol() -> None:
    statuses = {
        name.removeprefix("STATUS_"): value for name, value in vars(types).items() if "STATUS_" in name
    }
    assert statuses == tables.enum_values("containerd.v1.types.Status")
    levels = {name: value for name, value in vars(bootstrap).items() if name.startswith("LOG_LEVEL_")}
    assert levels == tables.enum_values("containerd.runtime.bootstrap.v1.LogLevel")
    modes = {name: getattr(pod_config, name) for name in ("POD", "CONTAINER", "NODE", "TARGET")}
    assert modes == tables.enum_values("runtime.v1.NamespaceMode")
    capabilities = {name: value for name, value in vars(bootstrap).items() if name.startswith("CAPABILITY_")}
    assert capabilities == tables.enum_values("containerd.runtime.bootstrap.v1.Capability")


def test_topics_and_type_urls_are_those_of_containerd() -> None:
    assert {message.NAME: topic for message, topic in events.TOPICS.items()} == tables.constants(
        "event_topic"
    )
    assert tables.constants("typeurl") == {
        "Spec": types.SPEC_URL,
        "Process": types.PROCESS_URL,
        "LinuxResources": types.RESOURCES_URL,
        "Features": types.FEATURES_URL,
    }


def test_values_are_given_in_order_or_by_name() -> None:
    assert types.Any("a", b"b") == types.Any(value=b"b", type_url="a") == types.Any("a", value=b"b")
    assert types.Any() == types.Any("", b"")
    assert types.Any("a") != types.Any("b")
    assert types.Any("a") != task.StateRequest("a")


def test_a_value_without_a_field_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Any has no field for valu$"):
        types.Any(valu=b"")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"so many values$"):
        types.Any("a", b"", 3)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        types.Any().valu = b""  # type: ignore[attr-defined]


def test_repr_shows_what_differs_from_the_defaults() -> None:
    assert repr(task.StateResponse(id="a", pid=3)) == "StateResponse(id='a', pid=3)"


def test_shared_defaults_cannot_be_changed() -> None:
    request = task.UpdateTaskRequest()
    with pytest.raises(TypeError):
        request.annotations["a"] = "b"  # type: ignore[index]
