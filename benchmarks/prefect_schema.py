"""Makes ``flows/prefect_schema.sql``, from which ``flows/prefect_server_child.py`` starts a new database.

    python -m benchmarks.prefect_schema [--check]

Prefect runs its own migrations on an empty database in a temporary home; what they end with is written as SQL. With
``--check`` the file is compared instead, and the command ends with status 1 where it differs.

The migrations make indexes and constraints in another order every time, which means nothing; here they are sorted, so
that the same Prefect always gives the same file.
"""

import argparse
import contextlib
import difflib
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from importlib.metadata import version
from itertools import groupby, islice
from pathlib import Path

from benchmarks.record import ROOT

SCHEMA = ROOT / "flows" / "prefect_schema.sql"
_MAX_DIFFERENCES = 40
_INDEX = re.compile(r"CREATE (UNIQUE )?INDEX ")
_MIGRATE = """
import asyncio
from prefect.server.database import provide_database_interface
asyncio.run(provide_database_interface().create_db())
"""


def migrated_schema() -> str:
    """The SQL of a database that the installed Prefect has just migrated."""
    with tempfile.TemporaryDirectory() as home:
        database = Path(home) / "prefect.db"
        own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        settings = {
            "HOME": home,
            "PREFECT_HOME": home,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "DO_NOT_TRACK": "1",
        }
        subprocess.run([sys.executable, "-c", _MIGRATE], env=own | settings, cwd=home, check=True)
        with contextlib.closing(sqlite3.connect(database)) as connection:
            return dump(connection)


def dump(database: sqlite3.Connection) -> str:
    """A database as SQL, in an order that only its content decides."""
    statements = [_with_sorted_constraints(statement) for statement in database.iterdump()]
    places = [place for place, statement in enumerate(statements) if _INDEX.match(statement)]
    for place, statement in zip(places, sorted(statements[place] for place in places), strict=True):
        statements[place] = statement
    return "".join(f"{statement}\n" for statement in statements)


def _with_sorted_constraints(statement: str) -> str:
    """A statement whose neighbouring constraints, one a line, are sorted; the commas stay in their places."""
    lines = []
    for is_run, run in groupby(statement.split("\n"), key=lambda line: line.startswith("\tCONSTRAINT ")):
        found = list(run)
        if is_run:
            ends = [line[len(line.rstrip(", ")) :] for line in found]
            found = [line + end for line, end in zip(sorted(line.rstrip(", ") for line in found), ends, strict=True)]
        lines += found
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file that is there; 1 where it differs")
    arguments = parser.parse_args()
    made, name = migrated_schema(), f"Prefect {version('prefect')}"
    if not arguments.check:
        SCHEMA.write_text(made, encoding="utf-8")
        print(f"{SCHEMA.relative_to(ROOT)} holds the schema of {name}: {len(made.splitlines())} lines")
        return
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA.read_text(encoding="utf-8"))
        there = dump(connection)
    if there == made:
        print(f"{SCHEMA.relative_to(ROOT)} is the schema of {name}")
        return
    differences = difflib.unified_diff(there.splitlines(), made.splitlines(), SCHEMA.name, name, lineterm="")
    print("\n".join(islice(differences, _MAX_DIFFERENCES)), file=sys.stderr)
    sys.exit(f"{SCHEMA.relative_to(ROOT)} is not the schema of {name}: run python -m benchmarks.prefect_schema")


if __name__ == "__main__":
    main()
