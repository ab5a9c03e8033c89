"""``unbraid reproduce entanglement``: entropy profiles of trained weights, of fine-tuning updates, and of attention.

Weights and attention are those of the models in ``DATA/models``, beside Gaussian matrices and the same networks with
random weights. For updates the small Llama is fine-tuned on other text in four ways: all weights; query and value
projections only; and those two by LoRA at two ranks (Hu et al., arXiv:2106.09685), with plain factors.

Source:
    What is looked at is that of "Artificial Entanglement in the Fine-Tuning of Large Language Models"
    (arXiv:2601.06788); models, data and sizes are others.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import isolated, stream
from unbraid.nn.entanglement import attention_entropies, entanglement_profiles
from unbraid.recipes.language import hashes
from unbraid.recipes.recipe import Outcome, Recipe, Request, Row, Section, Task, counted, make_row, with_spread
from unbraid.tensors.profile import ORDERS, UNDECIDED, find_valley, fit_length_law

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TUNED = "stories260k"
MODELS = (TUNED, "all-MiniLM-L6-v2")  # the second is left out where it is not there
STORIES, PLAYS = "text/stories260k/valid.txt", "text/tinyshakespeare.txt"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PROJECTIONS = ("q_proj", "v_proj")
WAYS = {"all weights": None, "q and v": 0, "LoRA, rank 4": 4, "LoRA, rank 8": 8}
LORA_SCALE = 2.0  # alpha over rank, as usual
_MADE = "made"  # the small random model without data


@dataclass(frozen=True)
class Settings:
    """What the results depend on.

    Attributes:
        lengths: tokens of which attention is looked at.
        sequences: texts of the longest length.
        steps: of the fine-tuning, AdamW with one cycle.
        batch_size: sequences.
        context: tokens a sequence.
        lr: peak for weights.
        lora_lr: peak for factors.
    """

    lengths: tuple[int, ...] = (8, 16, 32, 64, 96, 128, 192, 256)
    sequences: int = 4
    steps: int = 200
    batch_size: int = 8
    context: int = 128
    lr: float = 1e-3
    lora_lr: float = 5e-3


QUICK = Settings(lengths=(4, 6, 8, 12, 16, 24, 32), sequences=1, steps=20, batch_size=4, context=32)


class LoRALinear(nn.Module):
    """A frozen linear layer and the product of two trainable factors, which starts at zero.

    Args:
        linear: without a bias.
        rank: of the product.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = linear
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features))  # shape: (rank, in)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))  # shape: (out, rank)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., in) to (..., out)."""
        return self.base_layer(x) + LORA_SCALE * (x @ self.lora_A.mT) @ self.lora_B.mT


def run_weights(request: Request, model: str) -> list[dict[str, Any]]:
    """Profiles of all linear layers in both orders."""
    loaded = _load(request, model)
    return [
        layer.to_dict() for order in ORDERS for layer in entanglement_profiles(loaded, order=order) if layer.profile
    ]


def run_attention(request: Request, model: str, trained: bool) -> list[dict[str, Any]]:
    """Entropies of attention a length, of the model or of one like it with random weights."""
    settings: Settings = request.settings
    tokens = _tokens(request, model, STORIES, first=settings.sequences * max(settings.lengths))
    inputs = _sequences(request, model, tokens, max(settings.lengths))[: settings.sequences]
    network = _load(request, model) if trained else _untrained(request, model)
    return [found.to_dict() for found in attention_entropies(network, inputs, lengths=settings.lengths)]


def run_update(request: Request, way: str, seed: int) -> dict[str, Any]:
    """Fine-tune in one way; profiles of the updates of q and v, losses, and attention afterwards."""
    settings: Settings = request.settings
    tokens = _tokens(request, TUNED, PLAYS)
    cut = len(tokens) * 9 // 10
    held = _sequences(request, TUNED, tokens[cut:], settings.context)[:64]
    base = _load(request, TUNED)
    model = copy.deepcopy(base)
    before = _loss(model, held)
    _tune(model, _sequences(request, TUNED, tokens[:cut], settings.context), WAYS[way], settings, seed)
    profiles = [
        layer.to_dict()
        for order in ORDERS
        for layer in entanglement_profiles(model, PROJECTIONS, base=base, order=order)
        if layer.profile
    ]
    seen = attention_entropies(model, held[: settings.sequences])[0]
    return {
        "profiles": profiles,
        "before": before,
        "after": _loss(model, held),
        "attention": float(seen.matrix.mean()),
        "attention_before": float(attention_entropies(base, held[: settings.sequences])[0].matrix.mean()),
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    }


def _tune(model: nn.Module, sequences: Tensor, rank: int | None, settings: Settings, seed: int) -> None:
    """Train all weights (rank None), query and value projections (0), or factors of them."""
    if rank is not None:
        model.requires_grad_(False)
        with isolated(seed, "adapters"):
            for name, module in list(model.named_modules()):
                if name.rsplit(".", 1)[-1] in PROJECTIONS and isinstance(module, nn.Linear):
                    if rank:
                        model.set_submodule(name, LoRALinear(module, rank))
                    else:
                        module.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    peak = settings.lora_lr if rank else settings.lr
    optimizer = torch.optim.AdamW(trained, lr=peak, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=settings.steps, pct_start=0.1)
    generator = stream(seed, "batches")
    model.train()
    for _ in range(settings.steps):
        chosen = torch.randint(len(sequences), (settings.batch_size,), generator=generator)
        optimizer.zero_grad()
        loss = model(input_ids=sequences[chosen], labels=sequences[chosen]).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def _loss(model: nn.Module, sequences: Tensor) -> float:
    with torch.no_grad():
        return float(model.eval()(input_ids=sequences, labels=sequences).loss)


def _found(request: Request) -> list[str]:
    """The models that there are.

    Raises:
        InvalidInputError: if a folder was given that does not hold what is needed.
    """
    if request.data_dir is None:
        return [_MADE]
    for needed in (f"models/{TUNED}/config.json", STORIES, PLAYS):
        if not (request.data_dir / needed).is_file():
            raise InvalidInputError(
                f"reproduce entanglement needs {needed} in the folder of --data-dir; it is not there."
            )
    return [name for name in MODELS if (request.data_dir / "models" / name / "config.json").is_file()]


def _folder(request: Request, model: str) -> Path:
    assert request.data_dir is not None
    return request.data_dir / "models" / model


def _load(request: Request, model: str) -> Any:
    if request.data_dir is None:
        return _untrained(request, model)
    folder = _folder(request, model)
    return _kind(folder).from_pretrained(
        folder, attn_implementation="eager", local_files_only=True, use_safetensors=True
    )


def _kind(folder: Path) -> Any:
    import transformers

    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    causal = architectures[0].endswith("ForCausalLM")
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModel


def _untrained(request: Request, model: str) -> Any:
    """A network of the same sizes with random weights; a tiny one where there are no data."""
    import transformers

    with isolated(0, "untrained", model):
        if request.data_dir is None:
            config: Any = transformers.LlamaConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=64,
                attn_implementation="eager",
            )
            return transformers.LlamaForCausalLM(config).eval()
        config = transformers.AutoConfig.from_pretrained(_folder(request, model), local_files_only=True)
        return _kind(_folder(request, model)).from_config(config, attn_implementation="eager").eval()


def _tokens(request: Request, model: str, text: str, first: int | None = None) -> Tensor:
    """A text as token numbers, without marks of its beginning; random walks on few numbers where there are no data."""
    if request.data_dir is None:
        steps = torch.randint(-2, 3, (4096,), generator=stream(0, "text", text))
        return 2 + steps.cumsum(0) % 62
    words = (request.data_dir / text).read_text(encoding="utf-8").replace("<|endoftext|>\n", "")
    if first is not None:
        words = words[: 16 * first]  # no tokenizer makes longer tokens on average
    found = _tokenizer(request, model)(words, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(found)


def _tokenizer(request: Request, model: str) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(_folder(request, model), local_files_only=True)


def _sequences(request: Request, model: str, tokens: Tensor, length: int) -> Tensor:
    """Shape (sequences, length): pieces that follow each other, each behind the mark of a beginning."""
    start = 1 if request.data_dir is None else _tokenizer(request, model)("")["input_ids"][0]
    pieces = tokens[: len(tokens) // (length - 1) * (length - 1)].reshape(-1, length - 1)
    return torch.cat([torch.full((len(pieces), 1), start), pieces], 1)


def _data(request: Request, model: str, *texts: str) -> dict[str, str]:
    """SHA-256 sums of what a task reads."""
    if request.data_dir is None:
        return {}
    return hashes(request.data_dir / "models" / model, {text: request.data_dir / text for text in texts})


def _tasks(request: Request) -> list[Task]:
    models = _found(request)
    tasks = [Task(f"weights-{name}", run_weights, {"model": name}, depends=_data(request, name)) for name in models]
    tasks += [
        Task(
            f"attention-{name}-{'trained' if trained else 'untrained'}",
            run_attention,
            {"model": name, "trained": trained},
            depends=_data(request, name, STORIES),
        )
        for name in models
        for trained in (True, False)
    ]
    depends = _data(request, TUNED, PLAYS)
    return tasks + [
        Task(f"update-{_slug(way)}-{seed}", run_update, {"way": way, "seed": seed}, depends=depends)
        for way in WAYS
        for seed in range(request.seeds)
    ]


def _slug(way: str) -> str:
    return way.lower().replace(",", "").replace(" ", "-")


def _assemble(request: Request, results: Mapping[str, Any]) -> Outcome:
    settings: Settings = request.settings
    models = _found(request)
    seeds = range(request.seeds)
    weights = [row for name in models for row in _weight_rows(name, results[f"weights-{name}"])]
    attention = [
        _attention_row(name, trained, results[f"attention-{name}-{'trained' if trained else 'untrained'}"])
        for name in models
        for trained in (True, False)
    ]
    updates = [
        row for way in WAYS for row in _update_rows(way, [results[f"update-{_slug(way)}-{seed}"] for seed in seeds])
    ]
    made = "" if request.data_dir else "A tiny model of random weights on made-up text: figures mean nothing. "
    return Outcome(
        title="Entanglement of weights, fine-tuning updates and attention",
        note=(
            f"{made}Entropies in nats. Updates: {TUNED}, {counted(settings.steps, 'step')} of AdamW with one cycle, "
            f"batches of {settings.batch_size} x {settings.context} tokens, peak {settings.lr:g} (factors "
            f"{settings.lora_lr:g}), {counted(request.seeds, 'seed')}; means over layers, then over seeds with their "
            f"standard deviation. Attention: {counted(settings.sequences, 'sequence')} of stories."
        ),
        rows=weights + attention + updates,
        sections=(
            *(_profile_section(f"Weights, order {order}", weights, order) for order in ORDERS),
            _attention_section(attention, settings.lengths),
            *(_profile_section(f"Updates, order {order}", updates, order) for order in ORDERS),
            _tuning_section(results, seeds),
        ),
        extra={"data": {key: value for name in models for key, value in _data(request, name, STORIES, PLAYS).items()}},
    )


def _groups(layers: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, tuple[int, ...]], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str, tuple[int, ...]], list[Mapping[str, Any]]] = {}
    for layer in layers:
        ending = ".".join(layer["name"].split(".")[-2:])
        for common in ("self_attn.", "mlp.", "self."):
            ending = ending.removeprefix(common)
        key = (ending, layer["profile"]["order"], tuple(layer["shape"]))
        groups.setdefault(key, []).append(layer["profile"])
    return groups


def _weight_rows(model: str, layers: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [
        _profile_row(f"{model}, {ending}", "weight", [profiles], shape, order, ending)
        for (ending, order, shape), profiles in _groups(layers).items()
    ]


def _update_rows(way: str, runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    grouped = [_groups(run["profiles"]) for run in runs]
    return [
        _profile_row(f"{way}, {ending}", "update", [run[ending, order, shape] for run in grouped], shape, order, ending)
        for ending, order, shape in grouped[0]
    ]


def _profile_row(
    name: str,
    kind: str,
    runs: Sequence[Sequence[Mapping[str, Any]]],
    shape: tuple[int, ...],
    order: str,
    ending: str,
) -> Row:
    """One kind of layer: values are means over layers of the middle bond, one a seed."""
    every = [profile for profiles in runs for profile in profiles]
    first = every[0]
    bond = first["middle"] - 1
    slopes = [profile["law"]["laws"][0]["slope"] for profile in every if profile["law"]["law"] != UNDECIDED]
    return make_row(
        name,
        kind,
        [statistics.fmean(profile["entropies"][bond] for profile in profiles) for profiles in runs],
        seeds=range(len(runs)),
        ending=ending,
        order=order,
        shape=list(shape),
        layers=len(runs[0]),
        bond=first["middle"],
        entropies=[statistics.fmean(values) for values in zip(*(p["entropies"] for p in every), strict=True)],
        random=first["random"],
        maximum=first["maximum"],
        valleys=[statistics.fmean(p["valley"]["relative"] for p in profiles) for profiles in runs],
        random_valley=find_valley(first["random"]).relative,
        laws=dict(Counter(profile["law"]["law"] for profile in every)),
        slope=statistics.fmean(slopes) if slopes else None,
    )


def _attention_row(model: str, trained: bool, found: Sequence[Mapping[str, Any]]) -> Row:
    """Values are means over layers and heads, one a length; laws by layer and head."""
    lengths = [entry["length"] for entry in found]
    means, laws, slopes = {}, {}, {}
    for key in ("matrix", "rows"):
        values = torch.tensor([entry[key] for entry in found], dtype=torch.float64).flatten(1)  # (lengths, heads)
        fits = [fit_length_law(lengths, head.tolist()) for head in values.mT]
        means[key] = values.mean(1).tolist()
        laws[key] = dict(Counter(fit.law for fit in fits))
        mean_fit = fit_length_law(lengths, means[key])
        slopes[key] = {law.name: asdict(law) for law in mean_fit.laws} | {"best": mean_fit.law}
    return make_row(
        f"{model}, {'trained' if trained else 'random weights'}",
        "attention",
        means["matrix"],
        seeds=[0],
        lengths=lengths,
        shannon=means["rows"],
        laws=laws,
        fits=slopes,
    )


def _profile_section(heading: str, rows: Sequence[Row], order: str) -> Section:
    cells = []
    for row in rows:
        if row["order"] != order:
            continue
        laws = ", ".join(f"{law} {count}" for law, count in sorted(row["laws"].items(), key=lambda each: -each[1]))
        cells.append(
            (
                row["name"],
                " x ".join(str(size) for size in row["shape"]),
                str(row["layers"]),
                with_spread(row["values"], 2),
                f"{row['random'][row['bond'] - 1]:.2f}",
                f"{row['maximum'][row['bond'] - 1]:.2f}",
                laws,
                "-" if row["slope"] is None else f"{row['slope']:.2f}",
                f"{100 * statistics.fmean(row['valleys']):.0f}",
                f"{100 * row['random_valley']:.0f}",
            )
        )
    columns = ("layer", "shape", "layers", "entropy", "random", "maximum", "laws", "slope", "valley, %", "random's, %")
    note = "Entropies at the middle bond. Laws: of so many layers and seeds; slope: mean of those that are decided."
    return Section(columns, tuple(cells), heading=heading, note=note)


def _attention_section(rows: Sequence[Row], lengths: Sequence[int]) -> Section:
    cells = []
    for row in rows:
        for key, values in (("matrix", row["values"]), ("rows", row["shannon"])):
            best = row["fits"][key]["best"]
            slope = row["fits"][key].get("log", {}).get("slope")
            laws = row["laws"][key]
            heads = f"{laws.get(best, 0)} of {sum(laws.values())}"
            shown = "-" if slope is None else f"{slope:.2f}"
            cells.append((row["name"], key, *(f"{value:.2f}" for value in values), best, heads, shown))
    most = ("ln(length)", "", *(f"{math.log(length):.2f}" for length in lengths), "", "", "1.00")
    columns = ("model", "entropy of", *(str(length) for length in lengths), "law", "heads", "slope of ln(length)")
    return Section(columns, (*cells, most), heading="Attention against length, means over layers and heads")


def _tuning_section(results: Mapping[str, Any], seeds: Sequence[int]) -> Section:
    cells = []
    for way in WAYS:
        runs = [results[f"update-{_slug(way)}-{seed}"] for seed in seeds]
        cells.append(
            (
                way,
                f"{runs[0]['trained']:,}",
                f"{runs[0]['before']:.3f}",
                with_spread([run["after"] for run in runs]),
                f"{runs[0]['attention_before']:.3f}",
                with_spread([run["attention"] for run in runs]),
            )
        )
    columns = ("way", "trained scalars", "loss before", "loss after", "attention entropy before", "after")
    note = "Held-out text, nats a token; attention: entropy of the matrices on it, mean over layers and heads."
    return Section(columns, tuple(cells), heading="Fine-tuning", note=note)


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from unbraid.report.plots import COLOURS, GREY, MARKERS, save_figure

    def profiles(ax: Axes, mine: Sequence[Row], title: str, cut: int) -> None:
        for place, row in enumerate(mine):
            bonds = range(1, len(row["entropies"]) + 1)
            colour = COLOURS[place % len(COLOURS)]
            label = row["name"].rsplit(", ", 1)[cut]
            ax.plot(bonds, row["entropies"], color=colour, marker=MARKERS[place % len(MARKERS)], ms=3, label=label)
            ax.plot(bonds, row["random"], color=colour, linestyle=":", linewidth=1.0)
        ax.set_title(f"{title} (dotted: random)", fontsize=9)
        ax.set_xlabel("bond")
        ax.set_ylabel("bond entropy (nats)")
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=7, loc="lower center")

    def draw(figure: Any) -> None:
        figure.set_size_inches(9.0, 6.6)
        axes = figure.subplots(2, 2).flatten()
        vector = [row for row in rows if row.get("order") == "vector"]
        first = next(row for row in vector if row["kind"] == "weight")["name"].rsplit(", ", 1)[0]
        shown = [row for row in vector if row["kind"] == "weight" and row["name"].startswith(f"{first}, ")]
        profiles(axes[0], [row for row in shown if row["ending"] in ATTENTION], f"weights of {first}", 1)
        for ax, ending in zip(axes[1:3], PROJECTIONS, strict=True):
            mine = [row for row in vector if row["kind"] == "update" and row["ending"] == ending]
            profiles(ax, mine, f"updates of {ending}", 0)
        ax = axes[3]
        for place, row in enumerate(row for row in rows if row["kind"] == "attention"):
            colour, marker = COLOURS[place], MARKERS[place]
            ax.plot(row["lengths"], row["values"], color=colour, marker=marker, ms=3, label=row["name"])
            ax.plot(row["lengths"], row["shannon"], color=colour, linestyle=":", linewidth=1.0)
        lengths = next(row["lengths"] for row in rows if row["kind"] == "attention")
        ax.plot(lengths, [math.log(length) for length in lengths], color=GREY, linestyle="--", lw=1.0, label="maximum")
        ax.set_xscale("log", base=2)
        ax.set_title("attention matrices (dotted: rows)", fontsize=9)
        ax.set_xlabel("tokens")
        ax.set_ylabel("entropy (nats)")
        ax.legend(fontsize=7)

    save_figure(path, draw)


RECIPE = Recipe(
    settings=Settings(),
    quick=QUICK,
    seeds=3,
    quick_seeds=1,
    data=None,
    tasks=_tasks,
    assemble=_assemble,
    plot=_plot,
    extras={"transformers": "transformers"},
)
