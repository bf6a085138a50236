"""The ``lepton`` command. Modules that are slow to import are imported inside the commands that need them."""

import typer

from lepton.cli import bench, devices, estimate, evaluate, model, rtl
from lepton.cli.common import Group

app = typer.Typer(
    name="lepton",
    cls=Group,
    help="Run Transformer models with their Linear layers on an open int8 accelerator: emulated, simulated or real.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(model.run)
app.command()(model.explain)
app.command("compile")(model.compile_)
app.command()(devices.devices)
app.command()(devices.boards)
app.command()(estimate.estimate)
app.add_typer(model.models, name="models")
app.add_typer(evaluate.app, name="eval")
app.add_typer(bench.app, name="bench")
app.add_typer(rtl.app, name="rtl")
