"""Every cell of the tables: a table, an environment, a method, a budget and a seed make the command line of a trainer.

All methods of a table start from one policy, generate the same number of tokens, and are tested on the same tasks. The
table ``main`` starts from the environment's ready-made policy, ``wasteful`` from that policy after it has learnt to
waste more, as the ablations do. A method's own knob has three settings, tried from there on a seed that is in no
table (``tune``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ABLATIONS", "ALOUD", "BASELINES", "BUDGETS", "CONSTRAINED", "ENVS", "METHODS", "OURS", "PASSK",
           "PASSK_ENVS", "PLANNED", "STARTS", "TOKENS", "Cell", "Method", "cells", "wasteful_start"]  # fmt: skip

ROOT = Path(__file__).parents[2]
ENVS = ("APIAgent-v0", "SQL-v0", "WebLite-v0", "CodeAgent-v0")  # the most valuable first
TASKS = {  # where it is not the preset's
    "APIAgent-v0": '{"difficulty":[2,3],"domains":["shop","calendar","mail"],"max_turns":16}',
}
TOKENS = {"APIAgent-v0": 100_000, "SQL-v0": 75_000, "WebLite-v0": 75_000, "CodeAgent-v0": 75_000}  # of a run
ALOUD = {"APIAgent-v0": 50.0, "WebLite-v0": 29.4}  # output tokens of an oracle that thinks aloud as the policies must
BUDGETS = {"medium": "1.5", "tight": "1.0", "loose": "2.5"}  # times the oracle's mean cost
SEEDS, TUNING_SEED = (1, 2, 3, 4, 5), 100
STARTS = Path("runs") / "tables" / "starts"  # below the root: the wasteful policies, by environment
LONGER = {  # there is room for the waste
    "SQL-v0": '{"difficulty":[1,2],"max_turns":12}',
    "WebLite-v0": '{"difficulty":[1,2],"sites":["booking"],"max_turns":12}',
    "CodeAgent-v0": '{"difficulty":1,"max_turns":12}',
}
WASTEFUL = (  # how they come to waste: two needless calls in nearly every place of every demonstration
    "--method", "ppo", "--total-iterations", "0", "--eval-episodes", "0", "--seed", str(TUNING_SEED),
    "--warm.updates", "200", "--warm.lr", "1e-3", "--warm.demonstrations", "1600", "--warm.wasteful", "1",
    "--warm.waste", "0.95",
)  # fmt: skip

EPISODES, GROUP, ITERATIONS = 32, 4, 100  # the tokens end a run, after 40 iterations or more
TESTS = ("--eval-episodes", "256", "--no-eval-start")
STEADY = (
    "--num-episodes", str(EPISODES), "--group-size", str(GROUP), "--total-iterations", str(ITERATIONS),
    "--checkpoint-every", "1000",
)  # fmt: skip
COMMON = {
    "ppo_c3rl": (*STEADY, *TESTS, "--log-every", "5"),
    "grpo_pcgrad": (*STEADY, "--log-every", "1000", "--eval-every", "0", "--group-by", "task-type"),
    "rft": (*TESTS, "--rounds", "100", "--tasks-per-round", "128", "--pass-tasks", "1"),
}
SMOKE = {  # what is said last counts
    "ppo_c3rl": ("--num-episodes", "8", "--total-iterations", "2", "--eval-episodes", "4"),
    "grpo_pcgrad": ("--num-episodes", "8", "--total-iterations", "2", "--pool-tasks", "4", "--eval-tasks", "4"),
    "rft": ("--tasks-per-round", "2", "--rounds", "1", "--eval-episodes", "4"),
}


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Args:
        title: Its name there.
        trainer: A file of cleanrl_llm.
        flags: What it differs by.
        knob: The flag that is tuned for it; none has nothing to tune.
        trials: Its three settings.
        chosen: The one that the tables use, but for :data:`WINNERS`.
    """

    title: str
    trainer: str
    flags: tuple[str, ...] = ()
    knob: str = ""
    trials: tuple[str, ...] = ()
    chosen: str = ""

    def tuned(self, setting: str) -> tuple[str, ...]:
        """Its flags, with the knob at a setting."""
        return (*self.flags, self.knob, setting) if self.knob else self.flags


def _ppo(title: str, flags: str, knob: str, trials: str, chosen: str) -> Method:
    return Method(title, "ppo_c3rl", tuple(flags.split()), knob, tuple(trials.split()), chosen)


PLAIN_GRPO = ("--surgery", "none", "--pool-tasks", "512", "--eval-tasks", "256", "--eval-samples", "1",
              "--no-eval-start")  # fmt: skip
REFIT = ("--learning-rate", ("2e-4", "5e-4", "1e-3"), "5e-4")
C3 = "--method c3rl --credit.mode eliminate --credit.cost excess-group"
C3_LOO = "--method c3rl --credit.mode leave-one-out"

METHODS = {  # chosen: the defaults
    "c3": _ppo("C3-RL", C3, "--dual.lr", "0.05 0.1 0.2", "0.1"),
    "c3_loo": _ppo("C3-RL, leave-one-out", C3_LOO, "--dual.lr", "0.05 0.1 0.2", "0.1"),
    "penalty": _ppo("fixed penalty", "--method penalty", "--penalty-alpha", "0.1 0.3 1.0", "0.3"),
    "truncation": _ppo("hard truncation", "--method truncation", "--truncation-slack", "1.0 1.5 2.0", "1.0"),
    "lagrangian": _ppo("PPO-Lagrangian, trajectory", "--method lagrangian", "--dual.lr", "0.05 0.1 0.2", "0.1"),
    "lagrangian_to_go": _ppo(
        "PPO-Lagrangian, to go", "--method lagrangian --lagrangian-to-go", "--dual.lr", "0.05 0.1 0.2", "0.1"
    ),
    "lagrangian_critics": _ppo(
        "PPO-Lagrangian, critics", "--method lagrangian --critic", "--dual.lr", "0.05 0.1 0.2", "0.1"
    ),
    "lagrangian_curriculum": _ppo(
        "PPO-Lagrangian, curriculum", "--method lagrangian", "--dual.curriculum", "10 20 30", "20"
    ),
    "rft_pruned": Method("RFT, pruned", "rft", ("--keep", "pruned"), *REFIT),
    "rft_in_budget": Method("RFT, success in budget", "rft", ("--keep", "success-in-budget"), *REFIT),
    "stepgroup": _ppo("step credit without costs", "--method stepgroup", "--credit.weight", "0.3 1.0 3.0", "1.0"),
    "ppo": _ppo("PPO", "--method ppo", "--learning-rate", "1e-4 3e-4 1e-3", "3e-4"),
    "grpo": Method("GRPO", "grpo_pcgrad", PLAIN_GRPO, "--learning-rate", ("1e-4", "2e-4", "5e-4"), "2e-4"),
    "sft": Method("SFT (the start)", "ppo_c3rl", ("--method", "ppo", "--total-iterations", "0")),
}
WINNERS = {  # of ``tune``, where it is not the default; the table ``wasteful`` uses them
    ENVS[0]: {
        "penalty": "1.0", "lagrangian": "0.2", "lagrangian_to_go": "0.2", "lagrangian_critics": "0.2",
        "lagrangian_curriculum": "10", "rft_in_budget": "1e-3", "stepgroup": "3.0",
        "ppo": "1e-3", "grpo": "5e-4",
    },
    **{env: {"penalty": "1.0"} for env in ENVS[1:]},  # where the others had run before their trials
}  # fmt: skip
OURS = ("c3", "c3_loo", "rft_pruned")
BASELINES = tuple(name for name in METHODS if name not in (*OURS, "sft"))
CONSTRAINED = tuple(name for name in BASELINES if name.startswith(("lagrangian", "penalty", "truncation")))
FIVE = ("c3", "c3_loo", "truncation", "penalty", "rft_pruned")  # the best at the medium budget: at the others too

FEW = "--credit.selection uncertain --credit.most-steps"


def _ablation(base: str, title: str, flags: str) -> Method:
    method = METHODS[base]
    return Method(title, method.trainer, (*method.tuned(method.chosen), *flags.split()))


ABLATIONS = {
    name: _ablation("c3", title, flags)
    for name, title, flags in (
        ("global_cost", "global cost only", "--credit.cost trajectory"),
        ("cost_best", "v: over the best so far", "--credit.cost excess-best"),
        ("cost_own", "v: own cost", "--credit.cost own"),
        ("cost_loo", "v: leave-one-out", "--credit.cost leave-one-out"),
        ("no_success_credit", "without u", "--credit.weight 0"),
        ("no_success_global_cost", "without u, global cost only", "--credit.weight 0 --credit.cost trajectory"),
        ("fixed_lambda", "fixed multipliers", "--dual.fixed 0.5"),
        ("one_channel", "calls only", "--dual.channels tool_calls"),
        ("no_z_reward", "without z(R)", "--credit.no-z-reward"),
        ("no_gate", "without the success gate", "--credit.no-success-gate"),
        ("literal", "literal replay", "--credit.no-grounding"),
        ("m2", "M = 2", f"{FEW} 2"),
        ("m4", "M = 4", f"{FEW} 4"),
        ("k2", "K = 2", f"{FEW} 16 --credit.most-interventions 2"),
        ("k4", "K = 4", f"{FEW} 16 --credit.most-interventions 4"),
        ("k8", "K = 8", f"{FEW} 16 --credit.most-interventions 8"),
        ("successes", "successes only", "--credit.episodes successes"),
        ("near_misses", "successes and near-misses", "--credit.episodes near-misses"),
    )
} | {
    name: _ablation("c3_loo", title, flags)
    for name, title, flags in (
        ("loo_global_cost", "leave-one-out, global cost only", "--credit.cost trajectory"),
        ("truncate", "truncate alone", "--credit.interventions truncate"),
        ("swap", "swap alone", "--credit.interventions swap"),
        ("replace", "replace alone", "--credit.interventions replace"),
        ("block2", "leave-one-out, blocks of 2", "--credit.block 2"),
        ("block4", "leave-one-out, blocks of 4", "--credit.block 4"),
        ("loo_literal", "leave-one-out, literal replay", "--credit.no-grounding"),
    )
}

MEASURES = {  # of credit: how success is measured, and how v is taken
    "excess_group": ("elimination, excess over the group's best", C3),
    "excess_best": ("elimination, excess over the best so far", "--credit.mode eliminate --credit.cost excess-best"),
    "own": ("elimination, own cost", "--credit.mode eliminate --credit.cost own"),
    "v_loo": ("elimination, v by leave-one-out", "--credit.mode eliminate --credit.cost leave-one-out"),
    "loo": ("leave-one-out", C3_LOO),
}
LENGTHS = {
    length: TASKS[ENVS[0]].replace("[2,3]", levels) for length, levels in (("short", "[1,2]"), ("long", "[3,4]"))
}
WASTE = {"much": "", "little": "--warm.updates 60 --warm.wasteful 0 --warm.demonstrations 1000"}  # of the start
CONTROLS = {"eta 0.1": "--dual.lr 0.1", "eta 0.3": "--dual.lr 0.3", "PID": "--dual.lr 0.1 --dual.pid"}
MODES = {
    f"{measure}-{length}-{waste}-{control.replace(' ', '')}": Method(
        f"{title}, {control}", "ppo_c3rl", ("--env-kwargs", tasks, *f"{flags} {start} {dual}".split())
    )
    for control, dual in CONTROLS.items()
    for length, tasks in LENGTHS.items()
    for waste, start in WASTE.items()
    for measure, (title, flags) in MEASURES.items()
}

PASSK_ENVS = ENVS[:2]  # on the first nearly every group is flat
TWICE = ("--eval-tasks", "64", "--eval-samples", "16", "--no-eval-start", "--pool-tasks", "128")
PASSK = {
    name: Method(title, "grpo_pcgrad", (*TWICE, *flags.split()))
    for name, title, flags in (
        ("grpo", "GRPO", "--surgery stats"),  # updates as none does, to the bit, and measures the conflict
        ("balanced", "balanced", "--surgery balanced"),
        ("pcgrad", "pcgrad", "--surgery pcgrad"),
        ("unique", "uniqueness", "--surgery none --method unique"),  # the best baseline of the first tables
        ("start", "the start", "--surgery none --total-iterations 0"),
    )
}


@dataclass(frozen=True)
class Cell:
    """One run. ``setting`` is that of the method's knob."""

    table: str
    env: str
    method: str
    budget: str
    seed: int
    setting: str = ""

    @property
    def of(self) -> Method:
        """Its method."""
        return {"ablations": ABLATIONS, "modes": MODES, "passk": PASSK}.get(self.table, METHODS)[self.method]

    @property
    def start(self) -> Path | None:
        """Checkpoint folder that it starts from, below the root; None is the ready-made policy."""
        return STARTS / self.env if self.table in ("tune", "wasteful", "ablations") else None

    @property
    def env_flags(self) -> tuple[str, ...]:
        """The environment and its tasks."""
        tasks = TASKS.get(self.env) or (LONGER.get(self.env) if self.start else None)
        return ("--env-id", self.env, *(("--env-kwargs", tasks) if tasks else ()))

    @property
    def path(self) -> str:
        """Its result file below the folder of the results, without the ending."""
        method = f"{self.method}={self.setting}" if self.table == "tune" else self.method
        return f"{self.table}/{self.env}/{method}__{self.budget}__seed{self.seed}"

    def command(self, smoke: bool = False) -> list[str]:
        """The trainer's file below the root and its flags.

        Args:
            smoke: A few episodes from a small model that has learnt nothing: does it run at all?
        """
        method, times = self.of, float(BUDGETS[self.budget])
        winners = WINNERS[self.env] if self.table == "wasteful" else {}
        flags = [
            *COMMON[method.trainer], *self.env_flags, "--seed", str(self.seed),
            "--budget.relative", BUDGETS[self.budget], "--total-tokens", str(TOKENS[self.env]),
            *(("--budget.output-tokens", f"{times * ALOUD[self.env]:g}") if self.env in ALOUD else ()),
            *method.tuned(self.setting or winners.get(self.method, method.chosen)),
        ]  # fmt: skip
        if self.start and not smoke:
            flags += ["--init", str(self.start)]
        if smoke:
            flags += ["--model", "tiny", "--warm.updates", "1", "--warm.demonstrations", "64", "--max-new-tokens", "8"]
            flags += SMOKE[method.trainer]
        return [f"cleanrl_llm/{method.trainer}.py", *flags]


def wasteful_start(env: str) -> list[str]:
    """The trainer's file below the root and the flags that make the wasteful start, without training."""
    return ["cleanrl_llm/ppo_c3rl.py", *Cell("wasteful", env, "sft", "medium", TUNING_SEED).env_flags, *WASTEFUL]


def cells() -> Iterator[Cell]:
    """Every cell, the most valuable first."""
    first, second, *others = ENVS
    for name, method in METHODS.items():
        yield from (Cell("tune", first, name, "medium", TUNING_SEED, setting) for setting in method.trials)
    for seed in SEEDS:
        yield from (Cell("wasteful", env, name, "medium", seed) for env in ENVS for name in METHODS)
    yield from _main(first, SEEDS)
    yield from (Cell("modes", first, name, "medium", seed) for seed in SEEDS[:2] for name in MODES)
    yield from _main(second, SEEDS[:3])
    yield from (Cell("ablations", first, name, "medium", seed) for name in ABLATIONS for seed in SEEDS[:3])
    for env in others:
        yield from _main(env, SEEDS[:3])
    yield from (Cell("passk", env, name, "medium", seed) for env in PASSK_ENVS for seed in SEEDS[:3] for name in PASSK)
    for env in ENVS:
        for budget in ("tight", "loose"):
            seeds = SEEDS if env == first else SEEDS[:3]
            yield from (Cell("main", env, name, budget, seed) for seed in seeds for name in (*FIVE, "sft"))


def _main(env: str, seeds: tuple[int, ...]) -> Iterator[Cell]:
    """The main table at the medium budget, seed by seed: of a sweep that is cut short, whole seeds are there."""
    return (Cell("main", env, name, "medium", seed) for seed in seeds for name in METHODS)


PLANNED = frozenset((cell.table, cell.env, cell.method, cell.budget) for cell in cells())
"""The rows of all tables."""
