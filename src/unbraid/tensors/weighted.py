"""An MPO of a matrix that keeps its outputs on given inputs, rather than its entries.

The error of ``W_hat`` on inputs of second moment ``C = E[x x^T]`` is ``|W - W_hat|_C^2 = tr(D C D^T)`` with ``D = W -
W_hat``. A low rank under this norm is known in closed form: truncate ``W C^(1/2)`` and multiply ``C^(-1/2)`` back. An
MPO cannot take a whole ``C^(1/2)`` without growing, but it can take a matrix a site. So the moment of each input leg
alone (a partial trace of ``C``) is taken into ``W`` first, ``W`` is decomposed, and its cores are then optimised in
turn under what is left of ``C``: each is a linear least-squares problem, solved by conjugate gradients. Where one site
has all of the input, nothing is left, and the start is the optimum.

Errors may be weighted on the side of outputs too, by the second moment ``G`` of the loss's slopes in them: the error is
then ``tr(G D C D^T)``, the legs of outputs are treated as those of inputs.

Source: truncation under input moments: Chen et al., "DRONE", NeurIPS 2021; Wang et al., arXiv:2403.07378
(SVD-LLM). Moments of inputs and slopes: Martens, Grosse, arXiv:1503.05671.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from unbraid.ground.errors import InvalidInputError, require_finite
from unbraid.tensors import chain
from unbraid.tensors.decompose import Limits, decompose, even
from unbraid.tensors.legs import deinterleave, interleave

DAMPING = 1e-3  # of the mean input power, in every direction: so much do inputs that were not seen count
_SWEEPS = 12  # at most
_ENOUGH = 0.01  # a sweep that lowers the error by less, relatively, is the last
_STEPS = 8  # of conjugate gradients a core
_TO_COME = 4  # times what the last sweep brought: more than all later ones bring, in all but a few of a hundred cases
_TRIALS = 6  # of ranks for an error
_AIM = 0.98  # of the error allowed: ranks are whole numbers
_SLOPE_DAMPING = 0.1  # likewise for outputs: slopes tell of small changes only


def check_covariance(covariance: Tensor, size: int, name: str = "covariance") -> None:
    """Refuse what is no second moment of ``size`` inputs, or slopes.

    Raises:
        InvalidInputError: saying what came.
    """
    if not isinstance(covariance, Tensor) or covariance.shape != (size, size) or not covariance.is_floating_point():
        came = f"{covariance.dtype}, {tuple(covariance.shape)}" if isinstance(covariance, Tensor) else repr(covariance)
        raise InvalidInputError(
            f"{name} must be a real matrix of shape ({size}, {size}), a second moment; got {came}. "
            "unbraid.nn.input_moments(model, batches) collects it."
        )
    require_finite(covariance, name)
    scale = float(covariance.abs().max())
    if scale == 0:
        raise InvalidInputError(f"{name} is all zeros: the layer saw nothing, so none of its outputs matter.")
    if float((covariance - covariance.mT).abs().max()) > 1e-3 * scale:
        raise InvalidInputError(f"{name} must be symmetric.")
    if float(covariance.trace()) <= 0 or int(torch.linalg.cholesky_ex(damped(covariance, DAMPING / 2)).info):
        raise InvalidInputError(f"{name} has negative eigenvalues: nothing has such a second moment.")


def damped(covariance: Tensor, damping: float = DAMPING) -> Tensor:
    """What errors are weighted by: the second moment over the mean power of an input, plus ``damping`` everywhere."""
    moment = covariance.to(torch.float64)
    moment = (moment + moment.mT) / (2 * moment.diagonal().mean())
    return moment + damping * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def weighted_error(
    weight: Tensor, approximation: Tensor, covariance: Tensor | None, slopes: Tensor | None = None
) -> float:
    """Root-mean-square error of the outputs over their root mean square.

    Args:
        weight: shape (out, in).
        approximation: likewise.
        covariance: second moment of the inputs, shape (in, in); None for 1.
        slopes: what outputs are weighted by, shape (out, out); None for 1.
    """
    work = torch.float64 if weight.dtype == torch.float64 else torch.float32  # products; differences are exact
    exact = weight.to(torch.float64)
    size = exact.abs().max().clamp_min(torch.finfo(torch.float64).tiny)  # single precision cannot hold all squares
    difference = ((exact - approximation.to(torch.float64)) / size).to(work)
    exact = (exact / size).to(work)
    lost, total = difference, exact
    if covariance is not None:
        moment = covariance.to(weight.device, torch.float64)
        moment = (moment / moment.abs().max()).to(work)
        lost, total = difference @ moment, exact @ moment
    if slopes is not None:
        moment = slopes.to(weight.device, torch.float64)
        moment = (moment / moment.abs().max()).to(work)
        lost, total = moment @ lost, moment @ total
    errors, powers = ((a * b).sum(dtype=torch.float64) for a, b in ((lost, difference), (total, exact)))
    return math.sqrt(max(float(errors / powers.clamp_min(torch.finfo(torch.float64).tiny)), 0.0))


def damped_error(weight: Tensor, approximation: Tensor, covariance: Tensor, slopes: Tensor | None = None) -> float:
    """:func:`weighted_error` under the :func:`damped` moments: what :func:`decompose_weighted` makes small."""
    metric = damped(covariance.to(weight.device))
    slope_metric = None if slopes is None else damped(slopes.to(weight.device), _SLOPE_DAMPING)
    return weighted_error(weight, approximation, metric, slope_metric)


def decompose_weighted(
    weight: Tensor,
    covariance: Tensor,
    outs: Sequence[int],
    ins: Sequence[int],
    limits: Limits,
    method: str,
    seed: int,
    slopes: Tensor | None = None,
    rival: float | None = None,
) -> chain.Chain:
    """Cores of ``weight`` with a small error under ``covariance``, rounded to its dtype.

    Args:
        weight: real, shape (out, in), not zero.
        covariance: second moment of the inputs, shape (in, in).
        outs: output legs, with a product of at least out.
        ins: input legs, likewise.
        limits: of bonds and entries; ``rel_error`` is that of the outputs, under the :func:`damped` moment.
        method: of :data:`unbraid.tensors.subspace.METHODS`.
        seed: of random sketches.
        slopes: second moment of the loss's slopes in the outputs, shape (out, out); None for 1.
        rival: a :func:`damped_error` to beat: cores that are not going to are not improved further.
    """
    wanted = limits.rel_error
    fine = weight.dtype == torch.float64 or (wanted is not None and wanted < 1e-4)
    problem = OutputProblem(weight, covariance, outs, ins, torch.float64 if fine else torch.float32, slopes)

    def fitted(rel_error: float | None) -> chain.Chain:
        limited = Limits(limits.max_bond, rel_error, limits.max_parameters)
        cores = decompose(problem.target, outs, ins, limited, method, seed)
        return problem.stored(problem.improved(cores, rival=rival if rel_error is None else None))

    if wanted is None:
        return fitted(None)
    capped = limits.max_bond is not None or limits.max_parameters is not None
    best: chain.Chain | None = None
    bound, trial = wanted, 0
    least = torch.finfo(weight.dtype).eps / 4
    while bound > least and (trial < _TRIALS or not (capped or best)):
        cores = fitted(min(bound, 0.999))
        error = problem.output_error(cores)
        if error <= wanted and (best is None or _entries(cores) < _entries(best)):
            best = cores
        step = _AIM * wanted / max(error, 1e-300)
        bound *= min(max(step, 0.3), 3.0) if trial < _TRIALS else 0.5
        trial += 1
    if best is not None:
        return best
    if capped:
        return fitted(None)
    padded = pad(weight, (0, math.prod(ins) - weight.shape[1], 0, math.prod(outs) - weight.shape[0]))
    return chain.split_exactly(interleave(padded, outs, ins), [o * i for o, i in zip(outs, ins, strict=True)])


def _entries(cores: chain.Chain) -> int:
    return sum(core.numel() for core in cores)


class OutputProblem:
    """The least-squares problem in coordinates in which each leg alone has the moment 1.

    Args:
        weight: real, shape (out, in).
        covariance: second moment of the inputs, shape (in, in).
        outs: output legs, with a product of at least out.
        ins: input legs, likewise.
        work: dtype of the sweeps.
        slopes: second moment of the loss's slopes in the outputs, shape (out, out); None for 1.

    Attributes:
        target: the weight there, shape (prod(outs), prod(ins)).
        moment: what is left of the inputs' moment there, shape (prod(ins), prod(ins)); None if that is 1.
        slope_moment: what is left of the slopes' there, shape (prod(outs), prod(outs)); likewise.
    """

    def __init__(
        self,
        weight: Tensor,
        covariance: Tensor,
        outs: Sequence[int],
        ins: Sequence[int],
        work: torch.dtype,
        slopes: Tensor | None = None,
    ) -> None:
        rows, columns = weight.shape
        self.weight, self.metric = weight, damped(covariance.to(weight.device))
        self.slope_metric = None if slopes is None else damped(slopes.to(weight.device), _SLOPE_DAMPING)
        self.outs, self.ins = tuple(outs), tuple(ins)
        height, width = math.prod(outs), math.prod(ins)
        roots, inverses, moment = _by_leg(self.metric, self.ins, DAMPING)
        self.inverse, self.moment = inverses, None if moment is None else moment.to(work)
        self.slope_inverse: list[Tensor] | None = None
        self.slope_moment: Tensor | None = None
        self.scale = float(weight.abs().max())  # taken out: single precision could not hold the squares of any weight
        padded = pad(weight.to(torch.float64) / self.scale, (0, width - columns, 0, height - rows))
        target = _by_legs(padded, roots, self.ins)
        if self.slope_metric is not None:
            roots, self.slope_inverse, moment = _by_leg(self.slope_metric, self.outs, _SLOPE_DAMPING)
            target = _by_legs(target.mT.contiguous(), roots, self.outs).mT.contiguous()
            self.slope_moment = None if moment is None else moment.to(work)
        self.target = target.to(work)
        self.wanted = self._times_moment(self.target)
        self.total = float((self.wanted * self.target).sum())

    def _times_moment(self, matrix: Tensor) -> Tensor:
        matrix = matrix if self.moment is None else matrix @ self.moment
        return matrix if self.slope_moment is None else self.slope_moment @ matrix

    def error(self, cores: chain.Chain) -> float:
        """Of the outputs, relative."""
        difference = self.target - deinterleave(chain.contract(cores), self.outs, self.ins)
        return math.sqrt(max(float((self._times_moment(difference) * difference).sum()), 0.0) / self.total)

    def output_error(self, stored: chain.Chain) -> float:
        """The same of cores as they are stored, rounded to the dtype of the weight, and without the padding."""
        dense = deinterleave(chain.contract([core.to(torch.float64) for core in stored]), self.outs, self.ins)
        rows, columns = self.weight.shape
        return weighted_error(self.weight, dense[:rows, :columns], self.metric, self.slope_metric)

    def improved(self, cores: chain.Chain, sweeps: int = _SWEEPS, rival: float | None = None) -> chain.Chain:
        """Sweep over the cores, at most so often, until that is worth little, or will not get below a rival's error."""
        if (self.moment is None and self.slope_moment is None) or len(cores) == 1:
            return cores
        error = self.error(cores)
        for _ in range(sweeps):
            if error < torch.finfo(self.target.dtype).eps:
                break
            swept = self._swept(cores)
            before, error = error, self.error(swept)
            if error < before:
                cores = swept
            lost = rival is not None and error - _TO_COME * (before - error) > rival
            if lost or error > (1 - _ENOUGH) * before:
                break
        return cores

    def _swept(self, cores: chain.Chain) -> chain.Chain:
        """To the last core and back to the first, which then holds the norm."""
        cores, log_norm = chain.canonicalize(cores, 0)
        cores[0] = cores[0] * torch.exp(log_norm).to(cores[0].dtype)
        n = len(cores)
        for k in range(n - 1):
            core = self._solved(cores, k)
            left, leg, right = core.shape
            q, r = torch.linalg.qr(core.reshape(left * leg, right))
            cores[k] = q.reshape(left, leg, -1)
            cores[k + 1] = torch.tensordot(r, cores[k + 1], dims=1)
        for k in range(n - 1, 0, -1):
            core = self._solved(cores, k)
            left, leg, right = core.shape
            q, r = torch.linalg.qr(core.reshape(left, leg * right).mT)
            cores[k] = q.mT.reshape(-1, leg, right)
            cores[k - 1] = torch.tensordot(cores[k - 1], r.mT, dims=1)
        return cores

    def _solved(self, cores: chain.Chain, k: int) -> Tensor:
        """Core ``k`` after some steps of conjugate gradients; all others are orthogonal towards it."""
        core = cores[k]
        left, leg, right = core.shape
        one = torch.ones(1, 1, dtype=core.dtype, device=core.device)
        before, behind = one, one  # (legs before, left), (right, legs behind)
        for each in cores[:k]:
            before = torch.tensordot(before, each, dims=1).reshape(-1, each.shape[2])
        for each in reversed(cores[k + 1 :]):
            behind = torch.tensordot(each, behind, dims=1).reshape(each.shape[0], -1)

        def gathered(matrix: Tensor) -> Tensor:
            flat = interleave(matrix, self.outs, self.ins).reshape(len(before), -1)
            return ((before.mT @ flat).reshape(left * leg, -1) @ behind.mT).reshape(left, leg, right)

        def pressed(core: Tensor) -> Tensor:
            flat = (before @ core.reshape(left, -1)).reshape(-1, right) @ behind
            return gathered(self._times_moment(deinterleave(flat, self.outs, self.ins)))

        residual = gathered(self.wanted) - pressed(core)
        direction, size = residual, (residual * residual).sum()
        first = float(size)
        for _ in range(_STEPS):
            if float(size) <= 1e-20 * first or first == 0:
                break
            image = pressed(direction)
            length = size / (direction * image).sum()
            core = core + length * direction
            residual = residual - length * image
            size, earlier = (residual * residual).sum(), size
            direction = residual + size / earlier * direction
        return core

    def stored(self, cores: chain.Chain) -> chain.Chain:
        """In the coordinates of the weight, and in its dtype."""
        back = []
        for k, (core, out, leg, inverse) in enumerate(zip(cores, self.outs, self.ins, self.inverse, strict=True)):
            left, _, right = core.shape
            wide = torch.einsum("loir,ij->lojr", core.to(inverse.dtype).reshape(left, out, leg, right), inverse)
            if self.slope_inverse is not None:
                wide = torch.einsum("po,lojr->lpjr", self.slope_inverse[k], wide)
            back.append(wide.reshape(core.shape))
        factor = self.scale ** (1 / len(back))
        return [(core * factor).to(self.weight.dtype) for core in even(back)]


def _by_leg(metric: Tensor, legs: tuple[int, ...], damping: float) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """A moment leg by leg: the roots of each, their inverses, and what is left of the whole (None if that is 1)."""
    moment = damping * torch.eye(math.prod(legs), dtype=metric.dtype, device=metric.device)
    moment[: len(metric), : len(metric)] = metric
    roots = [_roots(each) for each in _leg_moments(moment, legs)]
    inverses = [inverse for _, inverse in roots]
    left: Tensor | None = None
    if sum(leg > 1 for leg in legs) > 1:
        left = _by_legs(_by_legs(moment, inverses, legs).mT.contiguous(), inverses, legs)
        left = (left + left.mT) / 2
    return [root for root, _ in roots], inverses, left


def _leg_moments(moment: Tensor, ins: Sequence[int]) -> list[Tensor]:
    """The moment of each input leg: a partial trace, of trace equal to its dimension."""
    n = len(ins)
    tensor = moment.reshape(*ins, *ins)
    found = []
    for k, leg in enumerate(ins):
        axes = [*range(n), *(n if j == k else j for j in range(n))]
        traced = torch.einsum(tensor, axes, [k, n])
        found.append(traced / traced.trace() * leg)
    return found


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its inverse."""
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.sqrt()) @ vectors.mT, (vectors / values.sqrt()) @ vectors.mT


def _by_legs(matrix: Tensor, factors: Sequence[Tensor], ins: Sequence[int]) -> Tensor:
    """The matrix (rows, prod(ins)) times the Kronecker product of symmetric factors, one a leg."""
    tensor = matrix.reshape(-1, *ins)
    for k, factor in enumerate(factors):
        if len(factor) > 1:
            tensor = torch.tensordot(tensor, factor, dims=([k + 1], [0])).movedim(-1, k + 1)
    return tensor.reshape(matrix.shape)
