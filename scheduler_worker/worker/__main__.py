"""`python -m scheduler_worker.worker`"""

from scheduler_worker.worker.main import main

raise SystemExit(main())
