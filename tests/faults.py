"""The fault matrix: what goes wrong, and the tests that hold us to what then happens.

A fault without a test says why. `test_faults.py` holds the names to the tests that there are.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """One line of the matrix."""

    what: str
    tests: tuple[str, ...] = ()
    why_not: str = ""


FAULTS: dict[int, Fault] = {
    1: Fault(
        "SIGKILL at any moment, any number of times",
        (
            "test_a_run_killed_at_some_commit_points_ends_with_the_same_bits",
            "test_a_run_killed_at_random_moments_ends_with_the_same_bits",
            "test_a_run_killed_at_every_commit_point_ends_with_the_same_bits",
            "test_a_run_killed_at_many_random_moments_ends_with_the_same_bits",
        ),
    ),
    2: Fault(
        "SIGTERM, SIGINT",
        (
            "test_a_signal_saves_and_the_same_command_goes_on_with_the_same_bits",
            "test_a_signal_during_a_save_waits_for_it",
            "test_a_second_signal_leaves_at_once",
            "test_a_signal_that_comes_twice_at_once_counts_once",
            "test_processes_that_are_told_to_stop_save_the_same_step_and_go_on",
        ),
    ),
    3: Fault(
        "a launcher that dies",
        (
            "test_a_run_whose_launcher_is_killed_saves_and_leaves_but_one_without_goes_on",
            "test_processes_whose_launcher_is_killed_save_and_leave",
            "test_a_benchmark_that_dies_or_is_stopped_takes_its_run_along_saved",
        ),
    ),
    4: Fault(
        "a process of several crashes",
        ("test_when_one_process_ends_the_others_say_so_and_the_same_command_goes_on",),
    ),
    5: Fault(
        "a process of several hangs",
        ("test_a_process_that_hangs_is_named",),
    ),
    6: Fault(
        "disk full while saving",
        (
            "test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else",
            "test_a_disk_that_fills_while_a_checkpoint_is_written_leaves_the_one_before",
            "test_a_disk_that_fills_while_weights_are_written_is_an_error",
            "test_a_disk_without_room_for_the_checkpoints_is_said_before_training",
            "test_a_disk_with_less_room_than_a_run_needs_is_a_problem",
        ),
    ),
    7: Fault(
        "disk full for metrics, log, wandb",
        (
            "test_metrics_that_cannot_be_written_end_the_run_with_their_name",
            "test_half_a_row_of_metrics_is_cut_off_when_the_run_goes_on",
        ),
    ),
    8: Fault(
        "checkpoint cut, too long, with a huge header, overlaps, holes, wrong offsets",
        (
            "test_a_crafted_file_is_refused_for_its_own_reason",
            "test_every_truncation_is_noticed",
            "test_a_damaged_checkpoint_is_left_out_with_one_warning_and_the_run_ends_the_same",
            "test_without_a_whole_checkpoint_the_run_is_refused",
            "test_a_header_of_an_absurd_length_is_refused_without_reading_it",
            "test_thousands_of_damaged_files_are_read_or_refused",
        ),
    ),
    9: Fault(
        "one byte flipped in a checkpoint folder or a weights file",
        (
            "test_a_flipped_bit_in_any_byte_is_noticed",
            "test_every_flipped_byte_of_a_checkpoint_is_detected",
            "test_every_flipped_bit_of_a_checkpoint_is_detected",
            "test_another_spelling_of_the_same_header_is_noticed",
            "test_a_flipped_bit_in_any_byte_is_noticed_or_changes_nothing",
        ),
    ),
    10: Fault(
        "NaN and infinities in weights",
        ("test_weights_that_are_not_finite_are_refused",),
    ),
    11: Fault(
        "other shapes, architecture, number of classes",
        (
            "test_another_architecture_is_told_with_at_most_five_names",
            "test_another_number_of_classes_does_not_fit",
            "test_weights_of_another_kind_of_number_do_not_fit",
            "test_weights_of_other_shapes_are_refused",
            "test_a_header_that_asks_for_another_model_gets_no_memory_and_no_network",
        ),
    ),
    12: Fault(
        "pickles",
        (
            "test_a_pickle_is_refused_and_never_run",
            "test_what_torch_saves_is_refused_as_a_pickle",
            "test_a_checkpoint_that_is_a_pickle_is_never_unpickled",
            "test_a_header_of_any_length_is_read",
        ),
    ),
    13: Fault(
        "bombs: JSON, dimensions, elements, tensors",
        (
            "test_a_crafted_file_is_refused_for_its_own_reason",
            "test_a_header_of_more_than_a_million_characters_is_refused",
            "test_a_deep_tree_is_refused",
            "test_a_size_that_no_memory_has_is_not_asked_for",
            "test_a_damaged_result_is_named",
            "test_options_of_too_many_parts_are_refused",
            "test_a_decompression_bomb_is_a_broken_image",
        ),
    ),
    14: Fault("a file cut while in use", ("test_a_file_that_is_cut_after_reading_harms_nobody",)),
    15: Fault(
        "data cut, too long, empty, of other counts, without names or folds",
        (
            "test_damaged_files_are_refused_with_what_was_expected_and_found",
            "test_a_missing_file_is_named_with_the_command_that_gets_it",
            "test_folds_that_are_none_are_refused",
            "test_missing_folds_and_unlabelled_images_are_named_with_their_command",
        ),
    ),
    16: Fault(
        "labels that name no class",
        (
            "test_labels_are_taken_only_if_every_one_names_a_class",
            "test_damaged_files_are_refused_with_what_was_expected_and_found",
        ),
    ),
    17: Fault(
        "other sums than the official ones",
        (
            "test_files_with_the_official_names_must_have_the_official_sums",
            "test_only_files_with_the_official_sums_are_called_stl10",
            "test_sums_that_came_with_a_copied_folder_are_not_believed",
            "test_sums_that_are_none_are_computed_again",
        ),
    ),
    18: Fault(
        "a download that breaks off, a server that does not resume, or lies",
        (
            "test_a_lost_connection_is_resumed_where_it_broke",
            "test_a_later_call_goes_on_from_what_an_earlier_one_left",
            "test_a_server_that_does_not_resume_is_read_from_the_start",
            "test_a_busy_server_is_asked_again_and_then_given_up",
            "test_a_silent_server_counts_as_lost",
            "test_wrong_content_is_refused_with_both_sums_and_nothing_is_left",
            "test_a_redirect_from_https_to_http_is_refused",
            "test_what_cannot_be_a_validator_is_not_sent",
        ),
    ),
    19: Fault(
        "hostile archives",
        (
            "test_a_hostile_archive_is_refused_and_writes_nothing",
            "test_strange_members_around_the_wanted_ones_are_skipped",
            "test_damage_anywhere_in_an_archive_is_a_data_error_or_harmless",
        ),
    ),
    20: Fault(
        "two processes, one run folder",
        (
            "test_a_run_folder_in_use_is_refused",
            "test_a_second_process_is_told_who_owns_the_run_and_a_third_goes_on_when_that_one_is_killed",
        ),
    ),
    21: Fault(
        "folders that cannot be written",
        (
            "test_a_runs_folder_that_is_a_file_is_a_storage_error",
            "test_a_folder_that_cannot_be_written_is_said_before_training",
            "test_a_runs_folder_that_cannot_be_written_is_a_problem",
            "test_a_data_folder_that_is_a_file_is_a_storage_error",
        ),
    ),
    22: Fault(
        "umask",
        (
            "test_the_file_has_the_mode_that_the_umask_asks_for",
            "test_files_have_the_permissions_that_the_umask_leaves",
        ),
    ),
    23: Fault(
        "no network, no W&B key",
        (
            "test_a_key_without_a_server_warns_and_logs_offline",
            "test_the_tracker_is_told_with_its_reason_without_network_and_without_the_key",
        ),
    ),
    24: Fault(
        "a tracker that fails or blocks",
        (
            "test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on",
            "test_a_tracker_that_fails_anywhere_is_one_warning_and_changes_nothing",
            "test_a_tracker_that_hangs_takes_ten_seconds_at_most",
        ),
    ),
    25: Fault(
        "divergence",
        (
            "test_divergence_is_said_recorded_and_not_repeated",
            "test_a_step_that_is_not_finite_is_never_applied",
            "test_a_run_that_diverged_keeps_its_best_epoch_and_its_checkpoints",
            "test_all_processes_stop_at_the_step_that_broke_on_one_of_them",
            "test_weights_that_overflow_are_neither_stored_nor_measured",
            "test_a_hold_out_loss_that_is_not_finite_is_a_divergence_and_no_best_epoch",
        ),
    ),
    26: Fault("a plateau at chance", ("test_a_run_whose_interval_holds_chance_is_marked",)),
    27: Fault(
        "out of memory",
        (
            "test_out_of_memory_names_what_needs_it_and_changes_nothing",
            "test_memory_that_really_ends_is_named",
        ),
    ),
    28: Fault(
        "settings out of their range",
        (
            "test_bad_input_is_one_line_with_the_remedy",
            "test_numbers_that_are_none_are_refused",
            "test_settings_that_cannot_be_are_refused",
            "test_a_run_is_checked_before_torch_is_imported",
        ),
    ),
    29: Fault(
        "unknown names",
        (
            "test_an_unknown_model_says_the_nearest_or_all",
            "test_a_misspelt_timm_model_says_the_nearest",
        ),
    ),
    30: Fault(
        "a folder of another configuration",
        (
            "test_a_folder_made_for_another_config_is_refused",
            "test_an_edited_result_is_refused",
            "test_overwrite_moves_the_old_run_aside",
        ),
    ),
    31: Fault("a run that is finished", ("test_a_finished_run_is_not_trained_again",)),
    32: Fault(
        "another number of processes or device",
        ("test_a_run_of_two_processes_goes_on_with_one_and_says_what_that_means",),
    ),
    34: Fault(
        "a torn last line",
        (
            "test_a_log_cut_at_any_byte_keeps_its_whole_lines",
            "test_a_log_that_is_cut_anywhere_goes_on_from_its_mark_or_is_refused",
            "test_a_damaged_line_before_the_last_is_an_error",
        ),
    ),
    35: Fault(
        "many processes finish at once",
        (
            "test_processes_that_end_their_runs_and_print_tables_at_once_lose_no_row",
            "test_processes_that_find_a_finished_run_agree_on_who_tidies_it",
        ),
    ),
    36: Fault(
        "clocks that jump",
        ("test_a_clock_that_goes_back_leaves_durations_and_order_as_they_are",),
    ),
    37: Fault(
        "names that a terminal, Markdown, CSV or HTML would run",
        (
            "test_no_name_or_reason_breaks_a_table",
            "test_any_text_gives_one_line_a_row_in_csv",
            "test_other_peoples_names_stay_text",
            "test_a_value_that_a_table_would_run_or_cannot_show_is_refused",
            "test_what_is_wrong_is_quoted_briefly_and_printably",
            "test_a_folder_of_any_name_is_shown_on_one_line",
        ),
    ),
    38: Fault("run names as paths", ("test_a_name_is_one_safe_folder",)),
    39: Fault(
        "folders of any name, terminals of any language",
        (
            "test_a_run_works_in_a_folder_of_any_name",
            "test_the_command_can_be_pasted_whatever_the_folder_is_called",
            "test_class_names_of_any_script_work",
        ),
    ),
    40: Fault(
        "100,000 images on a small machine",
        ("test_a_hundred_thousand_unlabelled_images_take_no_memory",),
    ),
    41: Fault(
        "closed pipes, no terminal, narrow ones",
        (
            "test_a_table_fits_the_terminal_and_never_loses_model_or_accuracy",
            "test_a_table_that_is_piped_has_all_columns",
            "test_a_closed_pipe_changes_no_exit_code_and_gives_no_traceback",
            "test_a_run_goes_on_when_nobody_listens",
            "test_a_full_disk_behind_stdout_is_an_error_and_one_behind_stderr_is_not",
            "test_every_finding_is_one_line_when_piped",
        ),
    ),
    42: Fault(
        "a model of several fails",
        ("test_benchmark_puts_a_failed_model_in_its_place_and_goes_on",),
    ),
    43: Fault(
        "secrets",
        (
            "test_no_file_of_a_run_tells_a_secret_a_home_or_a_command_line",
            "test_the_tracker_is_told_with_its_reason_without_network_and_without_the_key",
            "test_a_netrc_that_cannot_be_read_is_a_warning_that_tells_nothing_of_it",
        ),
    ),
    44: Fault(
        "hostile config.json, result.json and the like",
        (
            "test_a_damaged_file_is_read_or_refused_in_one_line",
            "test_a_manifest_that_vouches_for_nonsense_is_refused",
            "test_a_forged_manifest_is_a_state_or_refused",
            "test_bytes_that_are_no_log_give_no_epochs_or_our_error",
            "test_thousands_of_damaged_files_are_read_or_refused",
            "test_a_result_that_lacks_what_a_row_needs_is_named",
            "test_a_header_out_of_bounds_is_refused_briefly",
            "test_a_damaged_marker_is_refused",
        ),
    ),
    46: Fault(
        "leftovers",
        ("test_what_a_killed_process_left_half_written_is_swept",),
    ),
    47: Fault(
        "out of inodes (to a writer a full disk: fault 6), file descriptors or memory",
        (
            "test_a_run_needs_few_open_files",
            "test_a_file_that_does_not_fit_in_memory_is_told",
            "test_too_little_memory_to_load_torch_is_a_problem",
        ),
    ),
    48: Fault(
        "evaluation while a run writes",
        (
            "test_readers_find_whole_files_while_a_run_writes_after_each_step",
            "test_runs_are_listed_and_shown_while_one_writes_after_each_step",
        ),
    ),
}
