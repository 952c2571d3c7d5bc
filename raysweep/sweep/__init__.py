"""What a sweep is without Ray: its plan, its rows, its ledger, its early stopping, its model as files."""
