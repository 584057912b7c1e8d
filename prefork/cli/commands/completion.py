"""``prefork completion``: print what a shell needs to complete commands, flags and names of pools."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from prefork.cli.commands.exit_code import ExitCode

SHELLS = ("bash", "zsh", "fish")

EXAMPLES = """\
\b
To switch it on for every new shell:
  bash  echo 'eval "$(prefork completion bash)"' >> ~/.bashrc
  zsh   echo 'eval "$(prefork completion zsh)"' >> ~/.zshrc
  fish  prefork completion fish > ~/.config/fish/completions/prefork.fish
"""


@click.command("completion", short_help="Print the completion script for a shell.", epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, /, shell: str) -> int:
    """Print a script that has a shell complete commands, flags, choices and the names of pools."""
    made = get_completion_class(shell)
    if made is not None:
        script = made(ctx.find_root().command, {}, "prefork", "_PREFORK_COMPLETE")
        # Not script.source(): the one for bash first starts a bash to ask for its version.
        click.echo(script.source_template % script.source_vars())
    return ExitCode.OK
