"""The command group."""

from __future__ import annotations

import importlib
import signal
import sys
import threading

import click

from .. import __version__
from .common import Group

# Command -> module. Modules are imported when their command is used, so that --help need not wait for torch.
COMMANDS = {
    "embedded": "embedded",
    "download": "download",
    "convert": "convert",
    "infer": "infer",
    "validate": "validate",
    "golden": "golden",
    "tune": "tune",
    "bundle": "bundle",
    "export-onnx": "export_onnx",
    "run": "run",
    "inspect": "inspect_package",
    "compare": "compare",
    "list": "list_library",
    "doctor": "doctor",
    "benchmark": "benchmark",
}
SUMMARIES = {
    "embedded": "Write the voice that comes with rvc-coreml into FOLDER, to try everything before you have a voice of your own.",
    "download": "Fetch the published content encoder and pitch models from the model hub.",
    "convert": "Convert a HuBERT file, a voice or a pitch model into a model library, or any PyTorch module into packages.",
    "infer": "Convert speech or singing into a voice of a library.",
    "validate": "Check every package of a library against its golden outputs.",
    "golden": "Record, list and check the golden outputs of a library.",
    "tune": "Measure every compute unit and keep the fastest that is correct.",
    "bundle": "Pack a voice for an app: packages, contract, golden vectors, integration page.",
    "export-onnx": "Write a voice as ONNX, in the layout of RVC-WebUI or of w-okada's client.",
    "run": "Run any ML Program package on inputs from a file.",
    "inspect": "Show what a package takes, gives, holds and computes, and where it would run.",
    "compare": "Find the operation where two executions of a package part.",
    "list": "List the content encoder, the pitch models and the voices of a model library.",
    "doctor": "Show versions, devices, settings, and what works on this machine.",
    "benchmark": "Time conversions by stage, device and precision.",
}


class LazyGroup(Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f".{COMMANDS[cmd_name]}", __package__).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rvc-coreml")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """RVC voices as Core ML packages: convert, run and prove them.

    \b
    Start here, with the voice that comes along:
      rvc-coreml embedded try
      rvc-coreml convert hubert try/hubert -o library
      rvc-coreml convert voice try/joe.pth -o library
      rvc-coreml infer speech.wav out.wav -m library --voice joe --index-rate 0
    """
    del debug  # read from the context by Group
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # so that clean-up runs
