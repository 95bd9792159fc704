"""The options that plan, run and status share, and the plan that they describe."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
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
    submissions_dir,
    usable_submissions,
)
from harness.errors import InputError, ManifestError

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

    @property
    def known(self) -> dict[str, Submission]:
        """The submissions of the folder without faults by name."""
        return self._read[0]

    @functools.cached_property
    def _read(self) -> tuple[dict[str, Submission], dict[str, list[str]]]:
        return usable_submissions(self.submissions)

    @functools.cached_property
    def left_out(self) -> list[str]:
        """Sentences why something that was asked for is not in the plan; filled by ``plan``."""
        return []

    def refuse_other_than(self, *names: str, command: str) -> None:
        """Refuses the options that a command would ignore.

        Raises:
            InputError: A field has not its default and is none of ``names``.
        """
        for field in fields(self):
            if field.name not in names and getattr(self, field.name) not in (field.default, []):
                shown = "a submission" if field.name == "names" else f"--{field.name.replace('_', '-')}"
                raise InputError(f"quench {command} is about whole corpora and ignores {shown}: leave it out.")

    def plan(self, *, all_cells: bool = False) -> Plan:
        """Returns the plan: what is not stored yet, or with ``all_cells`` the whole grid; tells what it leaves out.

        Raises:
            InputError: A name is unknown, or nothing that was asked for can be planned.
        """
        from harness.run import devices, sweep
        from harness.run.plan import planner

        asked = self._faults_asked_for()
        names = [name for name in self.names or () if name not in asked]
        if asked and (self.names or not self.known) and not names:
            raise ManifestError(sentence for sentences in asked.values() for sentence in sentences)
        planned = planner.plan(
            self.known,
            names=names,
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
        faults = [sentence for sentences in asked.values() for sentence in sentences]
        self.left_out.extend(dict.fromkeys([*faults, *planned.refused.values()]))
        for sentence in self.left_out:
            typer.echo(f"Left out: {sentence}", err=True)
        return planned

    def _faults_asked_for(self) -> dict[str, list[str]]:
        """Returns the faults of the submissions that the command is about: those named, or all of the corpus."""
        from harness.submit.manifest import load as manifest

        faults = self._read[1]
        if self.names:
            return {name: faults[name] for name in self.names if name in faults}
        if self.corpus is None:
            return faults
        folder = submissions_dir(self.submissions)
        corpora = {name: manifest.stated(folder / name).get("corpus") for name in faults}
        return {name: faults[name] for name, corpus in corpora.items() if corpus in (None, self.corpus)}


def with_grid(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command that takes every field of ``Grid`` as an option besides its own, and is given the ``Grid``.

    It exits with 1 where something that was asked for is left out of the plan.

    Args:
        command: Its first parameter is called ``grid``; all others are options.
    """
    shared = inspect.signature(Grid).parameters
    own = list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def wrapper(**options: Any) -> None:
        grid = Grid(**{name: options.pop(name) for name in shared})
        command(grid=grid, **options)
        if grid.left_out:
            raise typer.Exit(1)

    hints = get_type_hints(Grid, include_extras=True) | get_type_hints(command, include_extras=True)
    del hints["grid"]
    told = [each.replace(annotation=hints[each.name], kind=each.KEYWORD_ONLY) for each in (*shared.values(), *own)]
    wrapper.__signature__ = inspect.Signature(told)  # type: ignore[attr-defined]
    wrapper.__annotations__ = hints
    return wrapper
