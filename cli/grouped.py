"""A command whose options are shown in groups, and options with spellings that work without being shown."""

from __future__ import annotations

from typing import Any

import click

OTHERS = "Other options"


class GroupedOption(click.Option):
    """`group` is the heading it stands under; `aliases` are other programs' names for it."""

    def __init__(self, *arguments: Any, group: str = OTHERS, aliases: tuple[str, ...] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group
        self.aliases = aliases

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        shown = self.opts
        self.opts = [*shown, *self.aliases]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts = shown


class GroupedCommand(click.Command):
    """Underscores in options and choices are taken as dashes: --f0_method is --f0-method."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        settings["context_settings"] = {"token_normalize_func": _dashed, **(settings.get("context_settings") or {})}
        super().__init__(*arguments, **settings)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(parameter, "group", OTHERS), []).append(record)
        for heading, records in sorted(groups.items(), key=lambda item: item[0] == OTHERS):  # --help comes last
            with formatter.section(heading):
                formatter.write_dl(records)


def _dashed(token: str) -> str:
    return token.replace("_", "-")
