"""What is looked at: a package, a folder of parts, a stage, a component, or every stage of a library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import LibraryError, UsageError
from ...runtime.hybrid.storage import GRAPH, is_hybrid, read_folder
from ...runtime.library import CONTENT_ENCODER, PITCH, VOICES, Component, Library
from ...runtime.manifest import MANIFEST
from ...runtime.reference.package import open_package
from ...runtime.reference.reader import function_names

KINDS = ("package", "parts", "stage", "component", "library")


@dataclass(frozen=True)
class Subject:
    """One function of one package, with what its library knows of it: where it belongs, and operation -> module."""

    title: str
    package: Path
    function: str
    component: str = ""
    stage: str = ""
    operations: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subjects:
    """`kind`: one of KINDS. `components` are those whose stages are looked at."""

    path: Path
    kind: str
    found: tuple[Subject, ...]
    components: tuple[Component, ...] = ()


def find_subjects(path: Path, function: str | None = None) -> Subjects:
    """What a path names: a package or compiled model, a folder of 'convert module', a library, one of its components
    (LIB/voices/NAME) or one of their stages (LIB/voices/NAME/decoder). `function` picks one of a package of several.

    Raises PackageError, LibraryError, and UsageError for a function that is not there.
    """
    component, stage = _component_at(path)
    if component is not None:
        kind = "component" if stage is None else "stage"
        names = component.manifest.stages if stage is None else (stage,)
        return _checked(Subjects(path, kind, tuple(_of_component(component, names, function)), (component,)), function)
    if is_hybrid(path) or (path / GRAPH).is_file():
        stored = read_folder(path)
        found = []
        for part in stored.plan.packages:
            facts = {"precision": part.precision}
            found += _of_package(part.name, path / str(part.package), function, stage=part.name, facts=facts)
        return _checked(Subjects(path, "parts", tuple(found)), function)
    if _is_library(path):
        components = tuple(Library.open(path).components())
        found = [subject for item in components for subject in _of_component(item, item.manifest.stages, function)]
        return _checked(Subjects(path, "library", tuple(found), components), function)
    owner, stage = _owner(path)
    if owner is not None and stage is not None:
        found = [subject for subject in _of_component(owner, (stage,), function) if subject.package.resolve() == path.resolve()]
        if found:
            return _checked(Subjects(path, "package", tuple(found)), function)
    return _checked(Subjects(path, "package", tuple(_of_package(path.name, path, function))), function)


def _checked(subjects: Subjects, function: str | None) -> Subjects:
    if function is not None and not subjects.found:
        names = f"; it has {', '.join(function_names(open_package(subjects.path)))}" if subjects.kind == "package" else ""
        raise UsageError(f"{subjects.path} has no function {function!r}{names}")
    return subjects


def _is_library(path: Path) -> bool:
    library = Library(path)
    return library.has_content_encoder() or bool(library.voice_names() or library.pitch_kinds())


def _component_at(path: Path) -> tuple[Component | None, str | None]:
    """A component whose folder a path is, or one of whose stages it names."""
    if (path / MANIFEST).is_file():
        return _component(path), None
    if not path.exists() and (path.parent / MANIFEST).is_file():
        component = _component(path.parent)
        if component is not None and path.name not in component.manifest.stages:
            stages = ", ".join(component.manifest.stages)
            raise LibraryError(f"the {component.title} has no stage {path.name!r}; its stages are {stages}")
        return component, path.name
    return None, None


def _component(folder: Path) -> Component | None:
    """None for a folder that lies where no component can."""
    folder = folder.absolute()
    if folder.name == CONTENT_ENCODER:
        return Library(folder.parent).content_encoder()
    if folder.parent.name == VOICES:
        return Library(folder.parent.parent).voice(folder.name)
    return Library(folder.parent.parent).pitch_model(folder.name) if folder.parent.name == PITCH else None


def _owner(package: Path) -> tuple[Component | None, str | None]:
    """The component that a package in a library's build belongs to, and its stage."""
    folder = package.absolute().parent.parent
    component = _component(folder) if (folder / MANIFEST).is_file() else None
    if component is None:
        return None, None
    stages = (name for name in component.manifest.stages if package.absolute() in (item.absolute() for item in component.packages(name)))
    return component, next(stages, None)


def _of_component(component: Component, stages: Any, function: str | None) -> Iterator[Subject]:
    for stage in stages:
        entry = component.manifest.stages[stage]
        facts = {"layout": entry.layout, "precision": entry.precision, "window": entry.window, "weights": entry.weights}
        operations = component.operations(stage)
        packages = component.packages(stage)
        for package in packages:
            part = "" if len(packages) == 1 else f", {package.stem}"
            title = (
                component.title
                if component.manifest.kind == CONTENT_ENCODER and stage == CONTENT_ENCODER
                else f"{component.title}, {stage}"
            )
            yield from _of_package(
                f"{title}{part}",
                package,
                function or entry.function,
                component=component.title,
                stage=stage,
                operations=operations,
                facts={name: value for name, value in facts.items() if value is not None},
            )


def _of_package(title: str, package: Path, function: str | None, **values: Any) -> Iterator[Subject]:
    names = function_names(open_package(package))
    if function is not None:
        names = [name for name in names if name == function]
    for name in names:
        yield Subject(title if len(names) == 1 else f"{title}, function {name}", package, name, **values)
