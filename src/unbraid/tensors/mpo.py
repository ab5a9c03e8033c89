"""Matrix product operators: a matrix as a chain of small tensors.

Legend: core ``k`` has shape (left, out, in, right). Columns: ``y = W x`` with ``W`` of shape (out, in), as
``nn.Linear.weight``. Site 0 is the most significant digit of the index. A log-scale stands beside the cores, since the
norm of fifty sites overflows float32: the operator is ``exp(log_scale)`` times the contraction of the cores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unbraid.ground.errors import InvalidInputError, require_choice, require_finite
from unbraid.ground.random import stream
from unbraid.tensors import chain, subspace
from unbraid.tensors.contraction import apply_cores, resized
from unbraid.tensors.decompose import Limits, decompose, even, largest_entry, spread_scale
from unbraid.tensors.drawing import draw_operator
from unbraid.tensors.entanglement import bond_entropy
from unbraid.tensors.legs import deinterleave
from unbraid.tensors.sites import align, check_dims, qubit_sites
from unbraid.tensors.weighted import check_covariance, decompose_weighted


class MPO:
    """A matrix product operator over torch tensors; immutable, every method returns a new one.

    ``shape``, ``to_dense()``, ``@`` and ``apply`` are logical (without the padding); norm, overlap and Schmidt values
    are of the padded operator, which differ only where a core has weight in the padding.

    Args:
        cores: tensors of shape (left, out, in, right), one a site; the outer bonds are 1.
        shape: the logical (out, in), at most the products of the legs; those products by default.
        log_scale: natural logarithm of a factor in front.

    Raises:
        InvalidInputError: if cores do not chain, are not finite, or ``shape`` does not fit.
    """

    def __init__(
        self, cores: Sequence[Tensor], *, shape: tuple[int, int] | None = None, log_scale: Tensor | float = 0.0
    ) -> None:
        cores = tuple(cores)
        _check_cores(cores)
        self._set(cores, shape, log_scale, None)
        for size, dims, name in zip(self.shape, (self.out_dims, self.in_dims), ("out_dims", "in_dims"), strict=True):
            check_dims(dims, size, name)

    def _set(
        self, cores: tuple[Tensor, ...], shape: tuple[int, int] | None, log_scale: Tensor | float, center: int | None
    ) -> None:
        self.cores = cores
        self.out_dims = tuple(core.shape[1] for core in cores)
        self.in_dims = tuple(core.shape[2] for core in cores)
        self.padded_shape = (math.prod(self.out_dims), math.prod(self.in_dims))
        self.shape = (int(shape[0]), int(shape[1])) if shape is not None else self.padded_shape
        if not isinstance(log_scale, Tensor):  # filled where it lives: a copy to a GPU would wait for it
            log_scale = torch.full((), log_scale, dtype=torch.float64, device=cores[0].device)
        self.log_scale = log_scale.to(cores[0].device, torch.float64)
        self.center = center

    def _like(self, cores: Sequence[Tensor], log_scale: Tensor | float, center: int | None = None) -> MPO:
        """An MPO of the same legs and logical shape from three-leg or four-leg cores, unchecked."""
        legs = zip(cores, self.out_dims, self.in_dims, strict=True)
        mpo = MPO.__new__(MPO)
        mpo._set(
            tuple(core.reshape(core.shape[0], o, i, core.shape[-1]) for core, o, i in legs),
            self.shape,
            log_scale,
            center,
        )
        return mpo

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        out_dims: Sequence[int] | None = None,
        in_dims: Sequence[int] | None = None,
        *,
        max_bond: int | None = None,
        rel_error: float | None = None,
        max_parameters: int | None = None,
        method: str = "auto",
        seed: int = 0,
        covariance: Tensor | None = None,
        slopes: Tensor | None = None,
        rival: float | None = None,
    ) -> MPO:
        """Decompose a matrix by truncations between neighbouring sites (TT-SVD).

        Without any limit the ranks are those of the matrix at rounding. With ``rel_error`` alone, the Frobenius norm of
        the error is at most that fraction of the norm of ``weight`` (measured after rounding to the dtype, honoured
        down to about 10 eps), and no single bond can be lowered by one without breaking the bound. Caps win over
        ``rel_error``.

        Args:
            weight: shape (out, in), real or complex.
            out_dims: output legs a site; one qubit a site by default, padded with zeros at the end of the flat index.
            in_dims: input legs a site, likewise. The shorter list gets legs of dimension 1 at its tail.
            max_bond: cap of every bond dimension.
            rel_error: allowed relative error, 0 <= rel_error < 1.
            max_parameters: the most valuable Schmidt values that at most this many core entries hold.
            method: "svd", "qr", "gram" (Gram matrices in float64: quickest where the weight is no float64 itself),
                "randomized" (quicker still for small bonds, its error up to a few per cent above the best), or "auto":
                "gram", but "qr" for float64 weights and errors below 1e-5.
            seed: of the random sketches of "randomized".
            covariance: second moment of the inputs, shape (in, in); :func:`unbraid.nn.input_moments` collects it. The
                error of the outputs on such inputs is then made small instead of that of the entries, by optimising the
                cores in turn, which takes longer. ``rel_error`` bounds the root mean square of that error over that of
                the outputs, with a thousandth of the mean power of an input added to ``covariance`` in every direction,
                so that inputs that were not seen count too. Ranks are then small by a search, not the least.
            slopes: second moment of the loss's slopes in the outputs, shape (out, out); with a covariance, outputs are
                weighted by them, and by a tenth of their mean power in every direction.
            rival: with a covariance and no ``rel_error``, such an error of another operator of the same matrix: cores
                that are not going to come below it are not optimised to the end.

        Returns:
            The MPO, with cores of the dtype and on the device of ``weight``.

        Raises:
            InvalidInputError: if ``weight`` is no matrix, is empty or not finite, or legs and limits do not fit.
        """
        peak = largest_entry(weight)
        limits = Limits(max_bond, rel_error, max_parameters)
        require_choice(method, subspace.METHODS, "method")
        rows, columns = weight.shape
        default = qubit_sites(rows, columns)
        outs, ins = align(
            default[0] if out_dims is None else check_dims(out_dims, rows, "out_dims"),
            default[1] if in_dims is None else check_dims(in_dims, columns, "in_dims"),
        )
        smallest = sum(o * i for o, i in zip(outs, ins, strict=True))
        if max_parameters is not None and max_parameters < smallest:
            raise InvalidInputError(
                f"max_parameters must be at least {smallest}, the entries with all bonds 1 on the legs {outs} x {ins}"
                f"; got {max_parameters}. Allow more, or choose other legs."
            )
        template = cls.__new__(cls)
        template.out_dims, template.in_dims, template.shape = outs, ins, (rows, columns)
        if slopes is not None and covariance is None:
            raise InvalidInputError("slopes weight outputs on given inputs: give their covariance too.")
        if covariance is not None:
            check_covariance(covariance, columns)
            if slopes is not None:
                check_covariance(slopes, rows, "slopes")
            if weight.is_complex():
                raise InvalidInputError("covariance goes with real weights; this one is complex.")
        if peak == 0:
            return template._like([weight.new_zeros(1, o * i, 1) for o, i in zip(outs, ins, strict=True)], 0.0)
        if not 1e-100 < peak < 1e100:  # squares would leave the range of float64
            factor = 2.0 ** math.floor(math.log2(peak))
            scaled = cls.from_dense(
                weight.detach() / factor,
                outs,
                ins,
                max_bond=max_bond,
                rel_error=rel_error,
                max_parameters=max_parameters,
                method=method,
                seed=seed,
                covariance=covariance,
                slopes=slopes,
                rival=rival,
            )
            return scaled * factor
        if covariance is not None:
            if limits == Limits():
                raise InvalidInputError("With a covariance, say how far: max_bond, rel_error or max_parameters.")
            cores = decompose_weighted(weight.detach(), covariance, outs, ins, limits, method, seed, slopes, rival)
            return template._like(cores, 0.0)
        return template._like(decompose(weight.detach(), outs, ins, limits, method, seed), 0.0)

    @classmethod
    def random(
        cls,
        out_dims: Sequence[int],
        in_dims: Sequence[int],
        max_bond: int,
        *,
        shape: tuple[int, int] | None = None,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> MPO:
        """Gaussian cores, scaled so that entries of the matrix have the variance 1 / (3 in) of ``nn.Linear``'s start.

        Bonds are capped at the rank that the legs on either side allow.

        Args:
            out_dims: output legs a site; the shorter list gets legs of dimension 1 at its tail.
            in_dims: input legs a site.
            max_bond: dimension of the bonds.
            shape: the logical (out, in).
            seed: of the entries.
            dtype: of the cores; torch's default if None.
            device: of the cores.
        """
        Limits(max_bond)
        outs, ins = align(out_dims, in_dims)
        check_dims(outs, math.prod(outs), "out_dims")
        check_dims(ins, math.prod(ins), "in_dims")
        legs = [o * i for o, i in zip(outs, ins, strict=True)]
        bonds = [
            min(max_bond, math.prod(legs[: k + 1]), math.prod(legs[k + 1 :])) for k in range(len(legs) - 1)
        ]  # fmt: skip
        variance = 1 / (3 * math.prod(ins) * math.prod(bonds))
        generator = stream(seed, "mpo")
        cores = [
            torch.randn(left, o, i, right, generator=generator, dtype=torch.float64) * variance ** (0.5 / len(legs))
            for left, o, i, right in zip([1, *bonds], outs, ins, [*bonds, 1], strict=True)
        ]
        return cls([core.to(device, dtype or torch.get_default_dtype()) for core in cores], shape=shape)

    @property
    def bond_dims(self) -> tuple[int, ...]:
        """Dimensions of the inner bonds, one fewer than sites."""
        return tuple(core.shape[3] for core in self.cores[:-1])

    @property
    def num_sites(self) -> int:
        """Number of sites."""
        return len(self.cores)

    @property
    def num_parameters(self) -> int:
        """Entries of all cores."""
        return sum(core.numel() for core in self.cores)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the cores."""
        return self.cores[0].dtype

    @property
    def device(self) -> torch.device:
        """Device of the cores."""
        return self.cores[0].device

    def __repr__(self) -> str:
        return (
            f"MPO(shape={self.shape}, out_dims={self.out_dims}, in_dims={self.in_dims}, bond_dims={self.bond_dims}, "
            f"dtype={self.dtype})"
        )

    def _repr_svg_(self) -> str:
        """What notebooks show."""
        title = f"Operator of shape {self.shape}, {self.num_parameters:,} entries"
        return draw_operator(self.out_dims, self.in_dims, self.bond_dims, title)

    def to(self, target: torch.device | torch.dtype | str) -> MPO:
        """A copy with cores on another device or of another dtype."""
        return self._like([core.to(target) for core in self.cores], self.log_scale, self.center)

    def balanced(self) -> MPO:
        """The same operator with the log-scale spread over the cores, all of equal root-mean-square entry."""
        return self._like(even(spread_scale(self._chain(), self.log_scale)), 0.0)

    def detach(self) -> MPO:
        """The same MPO cut off from the autograd graph."""
        return self._like([core.detach() for core in self.cores], self.log_scale.detach(), self.center)

    @property
    def mT(self) -> MPO:
        """The transposed operator, shape (in, out)."""
        mpo = MPO.__new__(MPO)
        mpo._set(
            tuple(c.transpose(1, 2) for c in self.cores), (self.shape[1], self.shape[0]), self.log_scale, self.center
        )
        return mpo

    def to_dense(self) -> Tensor:
        """The logical matrix, shape (out, in)."""
        return self.to_padded_dense()[: self.shape[0], : self.shape[1]]

    def to_padded_dense(self) -> Tensor:
        """The whole matrix, shape (prod(out_dims), prod(in_dims))."""
        return self._scaled(deinterleave(chain.contract(self._chain()), self.out_dims, self.in_dims))

    def apply(self, x: Tensor) -> Tensor:
        """``W x`` along the last axis; ``W`` is formed only where that is quicker.

        Args:
            x: shape (..., in), or (..., prod(in_dims)).

        Returns:
            Shape (..., out), or (..., prod(out_dims)) if ``x`` was padded.

        Raises:
            InvalidInputError: if the last axis has another size.
        """
        size = x.shape[-1]
        if size not in (self.shape[1], self.padded_shape[1]):
            raise InvalidInputError(
                f"x must have {self.shape[1]} entries on its last axis; got shape {tuple(x.shape)}."
            )
        out = self._scaled(apply_cores(resized(x, self.padded_shape[1]), self.cores))
        return resized(out, self.shape[0]) if size == self.shape[1] else out

    def __matmul__(self, x: Tensor) -> Tensor:
        """``W @ x`` for a column (in,) or columns (in, k)."""
        if x.dim() not in (1, 2) or x.shape[0] != self.shape[1]:
            raise InvalidInputError(
                f"MPO @ x needs x of shape ({self.shape[1]},) or ({self.shape[1]}, k); got {tuple(x.shape)}. "
                "For rows, use mpo.apply(x)."
            )
        return self.apply(x) if x.dim() == 1 else self.apply(x.mT).mT

    def canonicalize(self, center: int) -> MPO:
        """The same operator with orthogonal cores around ``center``; its norm goes to ``log_scale``.

        Raises:
            InvalidInputError: if there is no such site.
        """
        if not 0 <= center < self.num_sites:
            raise InvalidInputError(f"center must be a site from 0 to {self.num_sites - 1}; got {center}.")
        cores, log_norm = chain.canonicalize(self._wide_chain(), center)
        return self._like([core.to(self.dtype) for core in cores], self.log_scale + log_norm, center)

    def compress(self, max_bond: int | None = None, rel_error: float | None = None) -> MPO:
        """Lower the bonds, as :meth:`from_dense` does, without forming the matrix.

        Without limits, bonds that carry nothing above rounding are removed.

        Args:
            max_bond: cap of every bond dimension; wins over ``rel_error``.
            rel_error: the Frobenius error is at most this fraction of the norm.

        Raises:
            InvalidInputError: if a limit makes no sense.
        """
        Limits(max_bond, rel_error)
        wide = self._wide_chain()
        cores, log_norm = chain.canonicalize(
            [core.to(torch.complex128 if core.is_complex() else torch.float64) for core in wide], 0
        )
        if rel_error is None:
            lowered, log_factor = self._truncated(
                cores, max_bond, None if max_bond else 4 * torch.finfo(self.dtype).eps
            )
            return self._like(
                [core.to(self.dtype) for core in lowered], self.log_scale + log_norm + log_factor, self.num_sites - 1
            )

        def error(trial: Sequence[Tensor]) -> float:
            """Of a chain as it will be stored, relative to the operator."""
            stored = [core.to(self.dtype).to(cores[0].dtype) for core in trial]
            difference, log_size = chain.canonicalize(chain.add(stored, negative), 0)
            return float(torch.exp(log_size) * torch.linalg.vector_norm(difference[0]))  # a zero keeps its zeros

        negative = [*cores[:-1], -cores[-1]]
        least = chain.least_ranks(chain.schmidt_values(cores)[0], rel_error, 1e-13)
        for bound in (rel_error, rel_error / 2, rel_error / 8, 0.0):  # near rounding a tighter truncation may be needed
            lowered, log_factor = self._truncated(cores, max_bond, bound)
            whole = spread_scale(lowered, log_factor)
            fits = error(whole) <= rel_error
            if fits:
                whole = chain.lower_ranks(whole, lambda trial: error(trial) <= rel_error, least)
            if fits or max_bond is not None:
                return self._like([core.to(self.dtype) for core in whole], self.log_scale + log_norm)
        return self

    def _truncated(
        self, cores: chain.Chain, max_bond: int | None, rel_error: float | None
    ) -> tuple[chain.Chain, Tensor]:
        values, _ = chain.schmidt_values(cores)
        legs = [o * i for o, i in zip(self.out_dims, self.in_dims, strict=True)]
        ranks = [len(s) if max_bond is None else min(len(s), max_bond) for s in values]
        return chain.truncate(
            cores, ranks if rel_error is None else chain.ranks_for_error(values, legs, rel_error, ranks)
        )

    def schmidt_values(self, bond: int) -> Tensor:
        """Singular values between the sites up to ``bond`` and the rest, descending; shape (rank,), float64.

        Raises:
            InvalidInputError: if there is no such bond.
        """
        if not 0 <= bond < self.num_sites - 1:
            raise InvalidInputError(f"bond must be from 0 to {self.num_sites - 2}; got {bond}.")
        cores, log_norm = chain.canonicalize(self._wide_chain(), bond)
        left, leg, right = cores[bond].shape
        values = torch.linalg.svdvals(cores[bond].reshape(left * leg, right)).double()
        return values * torch.exp(self.log_scale + log_norm)

    def entropies(self) -> Tensor:
        """Bond entropies in nats, shape (sites - 1,) (Eq. 5 of the paper).

        Raises:
            InvalidInputError: if the operator is zero.
        """
        values, _ = chain.schmidt_values(self._wide_chain())
        if not values:
            return torch.zeros(0, dtype=torch.float64, device=self.device)
        return torch.stack([bond_entropy(s) for s in values])

    def norm(self) -> Tensor:
        """Frobenius norm of the padded operator, a float64 scalar: that of fifty sites would overflow float32."""
        mantissa, log_square = chain.inner(self._wide_chain(), self._wide_chain())
        return mantissa.real.clamp(min=0).double().sqrt() * torch.exp(self.log_scale + log_square / 2)

    def __add__(self, other: MPO) -> MPO:
        """Sum; bonds add up."""
        self._check_legs(other)
        scale = torch.maximum(self._log_norm(), other._log_norm())
        scale = torch.where(torch.isfinite(scale), scale, 0.0)
        return self._like(chain.add(self._levelled(scale), other._levelled(scale)), scale)

    def __mul__(self, factor: float | complex | Tensor) -> MPO:
        """Multiple by a scalar."""
        first = self.cores[0] * factor
        return self._like([first, *(core.to(first.dtype) for core in self.cores[1:])], self.log_scale)

    __rmul__ = __mul__

    def __neg__(self) -> MPO:
        return self * -1.0

    def __sub__(self, other: MPO) -> MPO:
        return self + (-other)

    def _chain(self) -> chain.Chain:
        return [core.reshape(core.shape[0], -1, core.shape[3]) for core in self.cores]

    def _wide_chain(self) -> chain.Chain:
        """The chain, half precision as float32: torch has no decompositions in less."""
        return [core.float() if core.dtype in (torch.bfloat16, torch.float16) else core for core in self._chain()]

    @torch.no_grad()
    def _log_norm(self) -> Tensor:
        """Logarithm of the norm; minus infinity for zero."""
        mantissa, log_square = chain.inner(self._chain(), self._chain())
        return self.log_scale + (mantissa.real.clamp(min=0).double().log() + log_square) / 2

    def _levelled(self, scale: Tensor) -> chain.Chain:
        """Cores of one size each that contract to the operator divided by exp(scale)."""
        cores = self._chain()
        sizes = [torch.linalg.vector_norm(core.detach()).double() for core in cores]
        if any(float(size) == 0 for size in sizes):
            return cores
        log_size = (self.log_scale - scale + torch.stack(sizes).log().sum()) / len(cores)
        return [
            core * (torch.exp(log_size) / size).to(core.real.dtype) for core, size in zip(cores, sizes, strict=True)
        ]

    def _scaled(self, tensor: Tensor) -> Tensor:
        return tensor * torch.exp(self.log_scale).to(tensor.real.dtype if tensor.is_complex() else tensor.dtype)

    def _check_legs(self, other: MPO) -> None:
        mine, theirs = (self.out_dims, self.in_dims, self.shape), (other.out_dims, other.in_dims, other.shape)
        if mine != theirs:
            raise InvalidInputError(
                f"The two MPOs must have the same legs (out_dims, in_dims, shape): {mine} and {theirs}."
            )


def inner(a: MPO, b: MPO) -> Tensor:
    """<a, b> = Tr(a^dagger b) of the padded operators, a scalar.

    Raises:
        InvalidInputError: if the legs differ.
    """
    a._check_legs(b)
    mantissa, log_scale = chain.inner(a._chain(), b._chain())
    return mantissa * torch.exp(log_scale + a.log_scale + b.log_scale).to(mantissa.real.dtype)


def overlap(a: MPO, b: MPO) -> Tensor:
    """Re <a, b> / (|a| |b|), between -1 and 1 (Eq. 2 of the paper); scales do not matter.

    Raises:
        InvalidInputError: if the legs differ or one operator is zero.
    """
    a._check_legs(b)
    mantissa, log_scale = chain.inner(a._chain(), b._chain())
    squares = [chain.inner(c._chain(), c._chain()) for c in (a, b)]
    if any(float(square.detach().real) <= 0 for square, _ in squares):
        raise InvalidInputError("The overlap with a zero MPO is undefined.")
    norms = (squares[0][0].real * squares[1][0].real).sqrt()
    log_norms = (squares[0][1] + squares[1][1]) / 2
    return mantissa.real / norms * torch.exp(log_scale - log_norms).to(norms.dtype)


def _check_cores(cores: Sequence[Tensor]) -> None:
    if not cores:
        raise InvalidInputError("An MPO needs at least one core.")
    right = 1
    for k, core in enumerate(cores):
        if not isinstance(core, Tensor) or core.dim() != 4 or core.numel() == 0:
            found = tuple(core.shape) if isinstance(core, Tensor) else type(core).__name__
            raise InvalidInputError(f"core {k} must be a non-empty tensor (left, out, in, right); got {found}.")
        if core.shape[0] != right:
            before = "the chain starts with a bond of 1" if k == 0 else f"core {k - 1} ends with a bond of {right}"
            raise InvalidInputError(f"core {k} has a left bond of {core.shape[0]}, but {before}.")
        if core.dtype != cores[0].dtype or core.device != cores[0].device:
            raise InvalidInputError("All cores of an MPO must have one dtype and one device.")
        require_finite(core, f"core {k}")
        right = core.shape[3]
    if right != 1:
        raise InvalidInputError(f"The last core must end with a bond of 1; got {right}.")
