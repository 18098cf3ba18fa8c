"""QuPath's Java classes in this process, started by paquo; columns to and from Java without a call for each object.

A method of Java is applied to a whole array inside the JVM, as a stream, and only primitive arrays and one joined text
cross the border.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stqp.errors import EnvironmentProblem

logger = logging.getLogger(__name__)

_BETWEEN, _ABSENT = "\x1e", "\x00"


def find() -> None:
    """Look for QuPath, without starting it.

    Raises
    ------
    EnvironmentProblem
        When there is none.
    """
    with _no_qupath():
        from paquo._config import settings, to_kwargs
        from paquo.jpype_backend import find_qupath

        find_qupath(**to_kwargs(settings))


@functools.cache
def start() -> Any:
    """Start QuPath's JVM, once.

    Returns
    -------
    module
        ``paquo.java``, which has QuPath's classes.

    Raises
    ------
    EnvironmentProblem
        When there is no QuPath, or its JVM does not start.
    """
    with _no_qupath():
        from paquo import java
    java.System.setOut(java.System.err)  # QuPath logs to stdout, which belongs to our caller
    if java.LogManager is not None:
        java.LogManager.setWarn()
    logger.debug("QuPath %s is started", java.qupath_version)
    return java


@contextlib.contextmanager
def _no_qupath() -> Iterator[None]:
    """Say in a sentence that there is no QuPath."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # paquo, JPype and dynaconf raise dozens of kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EnvironmentProblem(
            f"the paquo backend found no QuPath that it can start ({reason}); set PAQUO_QUPATH_DIR to the folder of an "
            "installed QuPath, or get one by `paquo get_qupath`, or use the native backend, which needs none"
        ) from error


@contextlib.contextmanager
def java_errors(doing: str, kind: type[Exception]) -> Iterator[None]:
    """Turn an exception of Java into ours: `doing`, and what Java says."""
    from paquo.jpype_backend import jpype

    try:
        yield
    except jpype.JException as error:
        cause = error
        while cause.getCause() is not None:
            cause = cause.getCause()
        raise kind(f"{doing}: {cause.getClass().getSimpleName()}: {cause.getMessage()}") from error


class Columns:
    """Applies Java's methods to arrays of Java objects."""

    def __init__(self) -> None:
        from paquo.jpype_backend import jpype

        self._jpype = jpype
        handles = jpype.JClass("java.lang.invoke.MethodHandles")
        self._handles = handles
        self._lookup = handles.publicLookup()
        self._type = jpype.JClass("java.lang.invoke.MethodType")
        self._proxies = jpype.JClass("java.lang.invoke.MethodHandleProxies")
        self._arrays = jpype.JClass("java.util.Arrays")
        self._int_stream = jpype.JClass("java.util.stream.IntStream")
        self._collectors = jpype.JClass("java.util.stream.Collectors")
        self._object = jpype.JClass("java.lang.Object")
        objects = jpype.JClass("java.util.Objects")
        or_absent = self.method(objects, "toString", self._object, "java.lang.String")
        self._text = self.bind(or_absent, 1, jpype.JString(_ABSENT))
        self.is_there = self.method(objects, "nonNull", self._object)

    def class_of(self, name: Any) -> Any:
        """Java's class object of a class, or of its name (``int``, ``double[]``, ``java.lang.String``)."""
        if isinstance(name, self._jpype.JClass("java.lang.Class")):
            return name
        if not isinstance(name, str):
            return name.class_
        if name.endswith("[]"):
            return self._jpype.JClass("java.lang.reflect.Array").newInstance(self.class_of(name[:-2]), 0).getClass()
        primitives = {"int": "Integer", "double": "Double", "boolean": "Boolean", "void": "Void", "byte": "Byte"}
        if name in primitives:
            return self._jpype.JClass(f"java.lang.{primitives[name]}").TYPE
        return self._jpype.JClass(name).class_

    def method(self, owner: Any, name: str, *takes: Any) -> Any:
        """Find a method of a class or its objects; one that is not public where there is no public one."""
        java_class = self.class_of(owner)
        classes = self._classes(takes)
        try:
            found = java_class.getMethod(name, classes)
        except self._jpype.JClass("java.lang.NoSuchMethodException"):
            found = java_class.getDeclaredMethod(name, classes)
            found.setAccessible(True)
        return self._lookup.unreflect(found)

    def constructor(self, owner: Any, *takes: Any) -> Any:
        """Find a constructor of a class."""
        found = self.class_of(owner).getDeclaredConstructor(self._classes(takes))
        found.setAccessible(True)
        return self._lookup.unreflectConstructor(found)

    def _classes(self, names: Sequence[Any]) -> Any:
        return self._jpype.JArray(self._jpype.JClass("java.lang.Class"))([self.class_of(name) for name in names])

    def _signature(self, returns: Any, takes: Sequence[Any]) -> Any:
        return self._type.methodType(self.class_of(returns), self._classes(takes))

    def bind(self, handle: Any, place: int, value: Any) -> Any:
        """Fix an argument."""
        return self._handles.insertArguments(handle, place, [value])

    def then(self, first: Any, second: Any) -> Any:
        """Apply one method to what another returns."""
        returned = second.type().parameterType(0)
        return self._handles.filterReturnValue(first.asType(first.type().changeReturnType(returned)), second)

    def _function(self, handle: Any, interface: str, returns: str) -> Any:
        signature = self._signature(returns, [self._object])
        fitted = self._handles.explicitCastArguments(handle, signature)
        return self._proxies.asInterfaceInstance(self._jpype.JClass(f"java.util.function.{interface}").class_, fitted)

    def doubles(self, array: Any, handle: Any) -> NDArray[np.float64]:
        """Numbers that a method returns for each object."""
        stream = self._arrays.stream(array).mapToDouble(self._function(handle, "ToDoubleFunction", "double"))
        return np.array(stream.toArray(), dtype=np.float64)

    def ints(self, array: Any, handle: Any) -> NDArray[np.int64]:
        """Whole numbers, or truth values, that a method returns for each object."""
        stream = self._arrays.stream(array).mapToInt(self._function(handle, "ToIntFunction", "int"))
        return np.array(stream.toArray(), dtype=np.int64)

    def objects(self, array: Any, handle: Any) -> Any:
        """Java array of what a method returns for each object."""
        return self._arrays.stream(array).map(self._function(handle, "Function", "java.lang.Object")).toArray()

    def texts(self, array: Any, handle: Any | None = None) -> list[str | None]:
        """Text of what a method returns for each object, or of the objects; None for Java's null."""
        if not len(array):
            return []
        whole = self._text if handle is None else self.then(handle, self._text)
        stream = self._arrays.stream(array).map(self._function(whole, "Function", "java.lang.Object"))
        parts = str(stream.collect(self._collectors.joining(_BETWEEN))).split(_BETWEEN)
        if len(parts) != len(array):  # a text has the separator in it
            parts = [str(text) for text in self.objects(array, whole)]
        return [None if part == _ABSENT else part for part in parts]

    def distinct(self, collections: Any) -> list[str]:
        """Texts that occur in Java collections of texts, in order of first use."""
        stream = self.method("java.util.Collection", "stream")
        flat = self._arrays.stream(collections).flatMap(self._function(stream, "Function", "java.lang.Object"))
        return [str(text) for text in flat.distinct().toArray()]

    def flat(self, collections: Any) -> Any:
        """Java array of the members of Java collections, one after the other."""
        stream = self.method("java.util.Collection", "stream")
        return (
            self._arrays.stream(collections).flatMap(self._function(stream, "Function", "java.lang.Object")).toArray()
        )

    def take(self, array: Any, index: ArrayLike) -> Any:
        """Java array of the objects at these places."""
        getter = self._handles.arrayElementGetter(array.getClass())
        return self.build(getter.bindTo(array), self.numbers(index, "int"))

    def numbers(self, values: ArrayLike, kind: str = "double") -> Any:
        """Java array of numbers."""
        dtype = {"double": np.float64, "int": np.int32}[kind]
        jtype = {"double": self._jpype.JDouble, "int": self._jpype.JInt}[kind]
        return self._jpype.JArray(jtype)(np.ascontiguousarray(values, dtype=dtype))

    def strings(self, values: Sequence[str]) -> Any:
        """Java array of texts."""
        return self._jpype.JArray(self._jpype.JString)(list(values))

    def string(self, text: str) -> Any:
        """Java's text."""
        return self._jpype.JString(text)

    def list_of(self, array: Any) -> Any:
        """Java list of the members of an array."""
        return self._arrays.asList(array)

    def put(self, array: Any, index: ArrayLike, values: Any) -> None:
        """Put objects at these places of a Java array."""
        setter = self._handles.arrayElementSetter(array.getClass()).bindTo(array)
        self.each(setter, self.numbers(index, "int"), values)

    def build(self, handle: Any, *columns: Any) -> Any:
        """Java array of what a method returns for each row of some columns (Java arrays of one length)."""
        function = self._by_row(handle, columns, "IntFunction", "java.lang.Object")
        return self._int_stream.range(0, len(columns[0])).mapToObj(function).toArray()

    def each(self, handle: Any, *columns: Any) -> None:
        """Call a method for each row of some columns (Java arrays of one length)."""
        if len(columns[0]):
            self._int_stream.range(0, len(columns[0])).forEach(self._by_row(handle, columns, "IntConsumer", "void"))

    def _by_row(self, handle: Any, columns: Sequence[Any], interface: str, returns: str) -> Any:
        filters = []
        for place, column in enumerate(columns):
            getter = self._handles.arrayElementGetter(column.getClass()).bindTo(column)
            wanted = handle.type().parameterType(place)
            filters.append(self._handles.explicitCastArguments(getter, getter.type().changeReturnType(wanted)))
        by_rows = self._handles.filterArguments(handle, 0, filters)
        signature = self._signature(handle.type().returnType(), ["int"])
        by_row = self._handles.permuteArguments(by_rows, signature, self._jpype.JArray(self._jpype.JInt)(len(columns)))
        fitted = by_row.asType(self._signature(returns, ["int"]))
        return self._proxies.asInterfaceInstance(self._jpype.JClass(f"java.util.function.{interface}").class_, fitted)
