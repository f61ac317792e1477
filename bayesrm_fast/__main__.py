"""`python -m bayesrm_fast` is `bayesrm`."""

from bayesrm_fast.cli.main import main

if __name__ == "__main__":
    main()
