"""The `stqp` command and the one place where errors become exit codes."""

import importlib
import sys

import click

from stqp import __version__

# name -> (module, help line): `stqp --help` lists the commands without importing any of them
COMMANDS = {
    "demo": ("demo", "Make a small sample and run the whole chain on it."),
    "import-xenium": ("import_xenium", "Turn a Xenium run and its H&E into a QuPath project."),
    "label": ("label", "Type the nuclei of a project by the counts of their cells."),
    "separability": ("separability", "Measure which nuclei an image can tell apart."),
    "qc-alignment": ("qc_alignment", "Measure how well nuclei lie on the stain of their slide."),
    "patches": ("patches", "Cut training patches, look at them, import and export them."),
    "train": ("train", "Train a HoVer-Net from the typed nuclei of QuPath projects."),
    "model": ("model", "Tell what a network is, export it, report on its run."),
    "predict": ("predict", "Find and type nuclei on slides, into QuPath projects."),
    "status": ("status", "Show how far a prediction of many slides is."),
    "compare": ("compare", "Show where two predictions of a slide differ."),
    "evaluate": ("evaluate", "Score predicted nuclei against the truth."),
    "audit": ("audit", "Check labels and splits before numbers are believed."),
    "experiment": ("experiment", "Train, predict and score a whole study from one file."),
    "scripts": ("scripts", "List stqp's scripts for QuPath, and put them into a project."),
    "project": ("project", "Look at QuPath projects, check, change and merge them."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"stqp_cli.{COMMANDS[cmd_name][0]}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command answers --help. Exit codes: 0 done, 1 a bug, 2 wrong usage, 3 bad input, "
    "4 environment (no GPU, disk full), 130 interrupted.",
)
@click.version_option(__version__, prog_name="stqp")
def cli() -> None:
    """Spatial transcriptomics as free annotation for H&E.

    stqp turns a spatial transcriptomics run into a QuPath project of typed nuclei, trains a HoVer-Net
    from it, and writes what that network finds on any slide back into QuPath.

    Start with: stqp demo
    """


def main() -> None:
    """Run the command line; errors become one sentence and an exit code."""
    from stqp.errors import StqpError

    try:
        code = cli.main(prog_name="stqp", standalone_mode=False)
    except click.exceptions.Abort:
        _say("interrupted")
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except StqpError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        import errno

        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _say(f"the disk is full ({error.filename or 'no file named'}); nothing that existed was changed")
            sys.exit(4)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _say(message: str) -> None:
    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(message, err=True)


if __name__ == "__main__":
    main()
