"""One self-contained HTML page from run folders: see :func:`hkd.write_report`."""
