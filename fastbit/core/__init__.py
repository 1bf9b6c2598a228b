"Files, store, processes, threads, text, checks: no machine learning. The door is empty, for a fast start"
