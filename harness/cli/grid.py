"""The options that plan, run and status share, and the plan that they describe."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from harness.cli.options import (
    DEFAULT_STORE,
    ControlsOption,
    CorpusOption,
    DataDirOption,
    DeviceOption,
    LimitOption,
    QuantizersOption,
    SeedOption,
    StoreOption,
    SubmissionsOption,
    TasksOption,
    chosen_quantizers,
    chosen_tasks,
    load_submissions,
)

if TYPE_CHECKING:
    from harness.records import Submission
    from harness.run.plan.planner import Plan

NamesArgument = Annotated[list[str] | None, typer.Argument(help="Submissions. [default: all]")]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Which cells a command is about; every field is an option of the command line."""

    names: NamesArgument = None
    store: StoreOption = DEFAULT_STORE
    submissions: SubmissionsOption = None
    quantizers: QuantizersOption = None
    tasks: TasksOption = None
    corpus: CorpusOption = None
    data_dir: DataDirOption = None
    limit: LimitOption = None
    device: DeviceOption = "cpu"
    seed: SeedOption = 0
    controls: ControlsOption = True

    @functools.cached_property
    def known(self) -> dict[str, Submission]:
        """All submissions of the folder by name."""
        return load_submissions(self.submissions)

    def plan(self, *, all_cells: bool = False) -> Plan:
        """Returns the plan: what is not stored yet, or with ``all_cells`` the whole grid.

        Raises:
            InputError: A name is unknown, or data or a reference value is missing.
        """
        from harness.run import devices, sweep
        from harness.run.plan import planner

        return planner.plan(
            self.known,
            names=self.names or (),
            quantizers=chosen_quantizers(self.quantizers),
            tasks=chosen_tasks(self.tasks),
            corpus=self.corpus,
            finished=frozenset() if all_cells else sweep.finished_keys(self.store),
            data_dir=self.data_dir,
            device=devices.kind_of(self.device),
            seed=self.seed,
            limit=self.limit,
            controls=self.controls,
            check_references=not all_cells,
        )


def with_grid(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command that takes every field of ``Grid`` as an option besides its own, and is given the ``Grid``.

    Args:
        command: Its first parameter is called ``grid``; all others are options.
    """
    shared = inspect.signature(Grid).parameters
    own = list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def wrapper(**options: Any) -> None:
        command(grid=Grid(**{name: options.pop(name) for name in shared}), **options)

    hints = get_type_hints(Grid, include_extras=True) | get_type_hints(command, include_extras=True)
    del hints["grid"]
    told = [each.replace(annotation=hints[each.name], kind=each.KEYWORD_ONLY) for each in (*shared.values(), *own)]
    wrapper.__signature__ = inspect.Signature(told)  # type: ignore[attr-defined]
    wrapper.__annotations__ = hints
    return wrapper
