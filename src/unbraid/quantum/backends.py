"""Backends by name: simulators of devices that come with qiskit-ibm-runtime, and IBM's own devices.

Accounts and tokens are read by qiskit-ibm-runtime alone, from where its users saved them.
"""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from typing import Any

from unbraid.ground.errors import ExecutionError, InvalidInputError, require_choice, require_extra
from unbraid.quantum.samplers import SamplerExecutor

MODES = ("job", "batch", "session")
_BATCHED = 5  # jobs at once


def fake_backend(name: str) -> Any:
    """A device with its noise as it was measured once, such as "fake_montreal" or "fake_marrakesh".

    Raises:
        InvalidInputError: if there is none of that name.
        MissingExtraError: if qiskit-ibm-runtime is not installed.
    """
    provider = require_extra("qiskit_ibm_runtime.fake_provider", "ibm")
    kinds = {getattr(kind, "backend_name", None): kind for kind in vars(provider).values() if isinstance(kind, type)}
    names = sorted(found for found in kinds if isinstance(found, str))
    if name not in names:
        near = get_close_matches(str(name), names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}."
        raise InvalidInputError(f"There is no backend {name!r} to simulate; {hint}")
    return kinds[name]()


def _sampler_class(runtime: Any) -> Any:
    """The sampler that prepares and reads jobs on this side; older versions have only the one that IBM retires."""
    try:
        return importlib.import_module("qiskit_ibm_runtime.executor_sampler").Sampler
    except ImportError:
        return runtime.SamplerV2


def ibm_executor(name: str, *, mode: str = "job", **options: Any) -> SamplerExecutor:
    """Circuits on one of IBM's devices, with the account that was saved for qiskit-ibm-runtime.

    Args:
        name: of the device, or "least_busy".
        mode: "job": every job queues by itself. "batch": jobs are scheduled together, five of them under way at once
            unless ``jobs_at_once`` says otherwise. "session": the device is kept from the first job to the end, which
            is billed as a whole. Batches and sessions must be closed: use the executor in a ``with`` statement, or
            call its ``close``.
        options: of :class:`unbraid.SamplerExecutor`; jobs of an earlier process are collected through the service.

    Raises:
        InvalidInputError: if there is no such device or mode.
        ExecutionError: if there is no account or no connection.
        MissingExtraError: if qiskit-ibm-runtime is not installed.
    """
    runtime = require_extra("qiskit_ibm_runtime", "ibm")
    require_choice(mode, MODES, "mode")
    try:
        service = runtime.QiskitRuntimeService()
        names = sorted(backend.name for backend in service.backends(simulator=False, operational=True))
        if name != "least_busy" and name not in names:
            raise InvalidInputError(f"This account has no device {name!r}; it has {', '.join(names) or 'none'}.")
        backend = service.least_busy(simulator=False) if name == "least_busy" else service.backend(name)
        sampler = _sampler_class(runtime)(mode=backend)
    except InvalidInputError:
        raise
    except Exception as error:  # whatever the vendor's library raises
        raise ExecutionError(
            f"IBM's service cannot be used ({type(error).__name__}: {error}). Save an account with "
            "QiskitRuntimeService.save_account, and check the connection."
        ) from error
    options = {"jobs_at_once": _BATCHED if mode == "batch" else 1, "retrieve": service.job} | options
    executor = SamplerExecutor(sampler, backend=backend, **options)
    if mode != "job":  # opened last, so that no wrong option leaves it open
        try:
            place = {"batch": runtime.Batch, "session": runtime.Session}[mode](backend)
            executor.sampler = _sampler_class(runtime)(mode=place)
        except Exception as error:
            raise ExecutionError(f"IBM's service opened no {mode} ({type(error).__name__}: {error}).") from error
    return executor
