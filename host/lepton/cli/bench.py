"""Commands that measure speed."""

import typer

from lepton.cli.bench_decode import decode
from lepton.cli.bench_hardware import gemm, simulation
from lepton.cli.bench_layers import attention, encoder, layer

app = typer.Typer(help="Measure speed.", no_args_is_help=True)
app.command()(decode)
app.command()(gemm)
app.command()(simulation)
app.command()(layer)
app.command()(encoder)
app.command()(attention)
