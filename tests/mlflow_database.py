"""MLflow's databases in tests: the first of a test run is migrated, the others begin as copies of it.

Some 50 migrations take a second of CPU, for each of the many catalogs of the tests.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any


def copy_migrated_databases(folder: Path) -> None:
    """Patch MLflow where it is imported; the migrated database is in a folder that test processes share."""
    utils: Any = sys.modules.get("mlflow.store.db.utils")
    if utils is None or hasattr(utils._upgrade_db, "migrate"):
        return
    migrate, migrated = utils._upgrade_db, folder / "mlflow.db"

    def upgrade(engine: Any) -> None:
        database = engine.url.database
        if engine.dialect.name != "sqlite" or not database or Path(database).stat().st_size > _SIZE_OF_A_NEW_ONE:
            migrate(engine)
            return
        if not migrated.exists():
            migrate(engine)
            engine.dispose()
            draft = migrated.with_suffix(f".{os.getpid()}")
            shutil.copyfile(database, draft)
            draft.replace(migrated)
            return
        engine.dispose()
        shutil.copyfile(migrated, database)

    upgrade.migrate = migrate
    utils._upgrade_db = upgrade


_SIZE_OF_A_NEW_ONE = 200_000
"""Bytes of a database with MLflow's first tables are fewer, of a migrated one more."""
