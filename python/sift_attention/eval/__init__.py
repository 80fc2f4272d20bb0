"""Quality evaluation without downloads: recall tasks, real text, teacher-forced scoring."""
