"""The `fastmim bench` command."""

from fastmim.bench.settings import BenchConfig
from fastmim.cli.flags import check_place, parse
from fastmim.data.sources.files import check_data


def run(arguments: list[str]) -> int:
    """Run `fastmim bench` and return its exit code."""
    command = parse(BenchConfig, arguments, "fastmim bench", BenchConfig("all"))
    if command.part != "document":
        check_place("json", command.file)
        if command.data is not None:
            check_data(command.data)
    from fastmim.bench.parts import run_bench

    run_bench(command, arguments)
    return 0
