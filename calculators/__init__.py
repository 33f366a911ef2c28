"""AiiDA CalcJobs, parsers and calcfunctions around the core of mimyria_wf."""
