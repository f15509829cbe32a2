"""SQL beneath the ledger: tables, connections, bulk statements, clocks, migrations."""
