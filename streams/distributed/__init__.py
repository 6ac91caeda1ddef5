"""Sources that divide their records among the processes of a distributed run."""
