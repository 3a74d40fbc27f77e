"""Declares a node's parameters once, with description and range, and reads them as one frozen set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
import sys
from types import MappingProxyType
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node

from flow_vla_core.errors import closest

__all__ = ['Parameter', 'Parameters', 'declare', 'read']


@dataclass(frozen=True)
class Parameter:
    """Describes one parameter; its type is that of the default.

    Args:
        name: of the parameter.
        default: bool, int, float, str, or a list of one of these.
        description: shown by ``ros2 param describe``.
        minimum: smallest number allowed.
        maximum: largest number allowed.
        choices: the only words allowed.
    """

    name: str
    default: Any
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def complaint(self, value: Any) -> str:
        """Say what is wrong with a value, or nothing."""
        if self.choices and value not in self.choices:
            return f'{self.name}: {value!r} is not allowed; {closest(str(value), self.choices)}'
        low, high = self._range()
        if (self.minimum, self.maximum) != (None, None) and not low <= value <= high:
            return f'{self.name}: {value!r} is not allowed; allowed: {low:g} to {high:g}'
        return ''

    @property
    def descriptor(self) -> ParameterDescriptor:
        """What ROS tools show."""
        descriptor = ParameterDescriptor(name=self.name, description=self.description)
        low, high = self._range()
        if self.choices:
            descriptor.additional_constraints = 'one of: ' + ', '.join(self.choices)
        if (self.minimum, self.maximum) == (None, None):
            return descriptor
        if isinstance(self.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
        return descriptor

    def _range(self) -> tuple[float, float]:
        largest = sys.float_info.max if isinstance(self.default, float) else 2 ** 63 - 1
        return (-largest if self.minimum is None else self.minimum,
                largest if self.maximum is None else self.maximum)


class Parameters(Mapping[str, Any]):
    """Holds the values that were in force when they were read; ``parameters['rate']`` or ``parameters.rate``."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, '_values', MappingProxyType(dict(values)))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__['_values'][name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f'{name}: parameters are frozen')

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def declare(node: Node, parameters: Sequence[Parameter]) -> None:
    """Declare parameters on a node; from then on a set that is not allowed is refused, with the reason."""
    known = {parameter.name: parameter for parameter in parameters}

    def check(values: list[Any]) -> SetParametersResult:
        complaints = [known[value.name].complaint(value.value) for value in values if value.name in known]
        reason = '; '.join(filter(None, complaints))
        return SetParametersResult(successful=not reason, reason=reason)

    node.add_on_set_parameters_callback(check)
    for parameter in parameters:
        node.declare_parameter(parameter.name, parameter.default, parameter.descriptor)


def read(node: Node, parameters: Sequence[Parameter]) -> Parameters:
    """Read the values that are in force now."""
    return Parameters({parameter.name: node.get_parameter(parameter.name).value for parameter in parameters})
