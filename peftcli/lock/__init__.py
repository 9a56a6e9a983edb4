"""What a run depends on, pinned: inputs by their hashes, the environment as description, the results to expect.

`document` is the file, `inputs` what goes into it, `differences` what has changed since, `bands` how far results may lie
apart on another machine.
"""

from peftcli.lock.document import LOCK_NAME, Lock
from peftcli.lock.lock_file import lock_path, read_lock, write_lock

__all__ = ["LOCK_NAME", "Lock", "lock_path", "read_lock", "write_lock"]
