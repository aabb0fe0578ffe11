"""How good, and how dear, is an agent? Agents on task sets, result files, and the check of a result file."""
