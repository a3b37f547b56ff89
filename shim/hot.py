"""The code that runs in the shim of a usual pod, by module: `runtime/linux/packing.py` lays it side by side.

Written by `python -m tests.harness.hot_code`, from a shim that had a container and execs. What is not in it works as
well, and a shim that runs it copies a page more.
"""

from __future__ import annotations

HOT = {
    "genericpath": "isdir samestat",
    "posixpath": "_get_sep dirname",
    "runtime.affinity": "_parse_list plan_tenant",
    "runtime.cgroups.cgroup": (
        "Cgroup.__init__ Cgroup.keep Cgroup.oom_kill_count Cgroup.open_join reopen reopen.<locals>.<genexpr>"
    ),
    "runtime.cgroups.counters": "read",
    "runtime.cgroups.directories": "_rmdir try_remove",
    "runtime.cgroups.files": "open_directory parse_pairs read_file",
    "runtime.cgroups.joining": (
        "Join.__init__ Join.close Join.into_leaf _join_order _join_order.<locals>.<genexpr> open_join "
        "open_v1_tasks"
    ),
    "runtime.cgroups.layout": (
        "Layout.find Layout.places Layout.unified Layout.v1 Layout.v1.<locals>.<genexpr> parse_cgroups_path"
    ),
    "runtime.cgroups.leaf": (
        "Leaf.__init__ Leaf._place Leaf.close Leaf.cpu_time Leaf.cpu_time.<locals>.<genexpr> Leaf.remove "
        "_open_or_remove make_leaf"
    ),
    "runtime.cgroups.stats_v1": (
        "_block_entries _block_io _cpu _cpu.<locals>.<genexpr> _hugetlb _memory _memory_entry _oom_control "
        "_oom_control.<locals>.<genexpr> _pids _size_name number page_sizes page_sizes.<locals>.<genexpr> "
        "read text"
    ),
    "runtime.cgroups.stats_v2": "_cpu _hugetlb _io _memory _memory_events _pressure read",
    "runtime.container": "Container.__init__ Container.become Container.require Tenant.__init__ open_host",
    "runtime.credentials": (
        "_check_id _plan_capabilities _plan_capabilities.<locals>.mask _require_subset plan_credentials "
        "plan_credentials.<locals>.<genexpr>"
    ),
    "runtime.features": "document",
    "runtime.labels": "require_available",
    "runtime.limits": "apply plan_rlimits",
    "runtime.linux.aio": "FileSync.__init__ FileSync.begin FileSync.fileno FileSync.finish",
    "runtime.linux.beneath": "openat2",
    "runtime.linux.capability": "last_capability",
    "runtime.linux.fds": (
        "OwnedFd.__enter__ OwnedFd.__exit__ OwnedFd.__init__ OwnedFd.close OwnedFd.fileno OwnedFd.release "
        "_borrow close_all pipe read_whole receive_with_fds send_with_fds socketpair"
    ),
    "runtime.linux.ffi": "create_string_buffer memmove",
    "runtime.linux.libc": "function.<locals>.call syscall",
    "runtime.linux.mount": "filesystem_magic",
    "runtime.linux.process": (
        "_as_fork clone3 clone3.<locals>.<lambda> close_all_but close_range set_child_subreaper "
        "set_process_name"
    ),
    "runtime.linux.procstat": "_stat_fields start_time",
    "runtime.linux.title": "_fields _move set_title set_title.<locals>.<genexpr>",
    "runtime.operations.apart": "_adopt _adopt.<locals>.<genexpr> _clone_creator create_apart",
    "runtime.operations.exec": (
        "_doors _launch _launch.<locals>.<lambda> _launch.<locals>.launch _launch_at _launch_somewhere "
        "_leaf_for _set_limits exec_ plan_affinity"
    ),
    "runtime.operations.listener": "notify",
    "runtime.operations.process_plan": (
        "complete complete.<locals>.<genexpr> lend_oom_score lend_oom_score.<locals>.<lambda> plan_limits "
        "plan_process set_limits set_scheduler"
    ),
    "runtime.operations.start": "start",
    "runtime.record": "Record.__init__ Record._completed as_dict replace",
    "runtime.rootfs.options": "parse_options",
    "runtime.spec.checks": (
        "absolute integer.<locals>.check list_of.<locals>.check_list record.<locals>.check text texts"
    ),
    "runtime.spec.json": "_check_depth _may_escape_badly _object _scan _skip_space dump parse",
    "runtime.spec.load": "_environment _load _runnable load_process",
    "runtime.stages.channel": (
        "Channel.__init__ Channel.close Channel.ended Channel.fileno Channel.receive Channel.received "
        "Channel.send channel_pair"
    ),
    "runtime.stages.clone": "_clone clone_stage",
    "runtime.stages.direct": "Channels.__init__ kept kept.<locals>.<genexpr>",
    "runtime.stages.messages": "_parse_marks _parse_number decode encode",
    "runtime.stages.seal": "Seal.__str__",
    "runtime.stages.stage0_parent": (
        "HostSide.__init__ Launched.__init__ _bury_opener _converse_with_init _converse_with_intermediate "
        "_tell await_execve converse start_landlord"
    ),
    "runtime.stages.staged": "clone_in_stages",
    "runtime.stages.start_gate": "close_doors close_doors.<locals>.<genexpr>",
    "runtime.stages.tenant": (
        "_born_on _launch_in_stages _launch_in_stages.<locals>.<lambda> _tenant_fds "
        "_tenant_fds.<locals>.<genexpr> choose_tenant_shape launch_tenant"
    ),
    "runtime.state": "check_id is_id transition",
    "runtime.terms": "_tuples from_json",
    "runtime.trace": (
        "Timeline.__init__ Timeline.add Timeline.mark Timeline.marks Timeline.marks.<locals>.<lambda> passed"
    ),
    "runtime.user_mapping": "caller groups_are_denied",
    "shim.accounts": "Accounts.__init__ Accounts.counters Accounts.oom_of_exec",
    "shim.api.codec": (
        "_append_delimited _append_fields _append_message _append_number _append_rare _append_varint _build "
        "_narrow _read_delimited _read_fields _read_varint _spend decode encode"
    ),
    "shim.api.message": "Message.__init__",
    "shim.api.types": "pack timestamp",
    "shim.backlog": "Backlog.__init__",
    "shim.bootstrap": (
        "_decode_params _options_among _read encode_answer group_of parse_arguments pod_name read_bootstrap "
        "write_address"
    ),
    "shim.callers": (
        "Callers.__init__ Callers.__len__ Callers._count Callers.count_calls Callers.has_called "
        "Callers.has_room Callers.hold Callers.join"
    ),
    "shim.container": (
        "Container.__init__ Container._drain Container._ended Container._report_init_if_last "
        "Container._start_exec Container._start_init Container._warn Container._watch "
        "Container._watch.<locals>.<lambda> Container.add_exec Container.delete Container.kill "
        "Container.process Container.start Container.status _create create rootfs_of"
    ),
    "shim.daemon": (
        "Shim.__init__ Shim.__init__.<locals>.<lambda> Shim._when_quiet Shim.serve _answer _deed "
        "_join_shim_cgroup _listen _listen.<locals>.claim _path_of _start _take_up end_when_left "
        "pod_directory run run_dir"
    ),
    "shim.deed": "_lock hold write",
    "shim.delete": "container_ids container_ids.<locals>.<genexpr>",
    "shim.destinations": "Destination.is_a_log Destination.is_a_stream parse",
    "shim.errors": "is_a_bug not_found status_of",
    "shim.events": (
        "Publisher.__init__ Publisher._connect Publisher._deliver Publisher._enqueue Publisher._fetch "
        "Publisher._forward Publisher._give_way Publisher._send_all Publisher.publish"
    ),
    "shim.exchange": "Exchange.__init__ Exchange.methods",
    "shim.exits": (
        "ExitWatch.__init__ ExitWatch.cancel ExitWatch.tell Hold.__enter__ Hold.__exit__ Hold.__init__ "
        "Reaper.__init__ Reaper._tell Reaper.claim Reaper.end_hold Reaper.forget Reaper.hold Reaper.holding "
        "Reaper.reap Reaper.watch exit_code"
    ),
    "shim.flow": "Flow.__init__ Flow._on_source Flow._pay Flow._splice Flow.close Flow.drop_keeper Flow.start",
    "shim.info": "features runtime_info",
    "shim.journal": (
        "Exit.encode Journal.__init__ Journal._finish Journal._open Journal._sync_disk Journal.append "
        "Journal.sync exit_of"
    ),
    "shim.leaves": (
        "Leaves.__init__ Leaves._sweep Leaves._tell Leaves.forget Leaves.release Leaves.remove kill_exec"
    ),
    "shim.log": "Log.__init__ Log.write",
    "shim.log_service": "LogService.__init__ LogService.methods",
    "shim.loop": (
        "Loop.__init__ Loop._call Loop._call_due_timers Loop._patience Loop._signals_came Loop.call_later "
        "Loop.call_soon Loop.count_cancelled_timer Loop.is_watched Loop.on_signal "
        "Loop.on_signal.<locals>.<genexpr> Loop.run Loop.turn Loop.unwatch Loop.watch Timer.__init__ "
        "Timer.__lt__ Timer.cancel _ignore_signal"
    ),
    "shim.mapped_mounts": "take_maps",
    "shim.oom": (
        "OomWatch.__init__ OomWatch._count OomWatch._limit_met OomWatch._limit_met.<locals>.<genexpr> "
        "OomWatch._watch_v1 OomWatch._watch_v2 _number _upwards"
    ),
    "shim.open_calls": (
        "OpenCall.__init__ OpenCall._finished OpenCall.run OpenCalls.__init__ OpenCalls.count "
        "OpenCalls.excess"
    ),
    "shim.options": "options_of read_handler unheeded",
    "shim.pod": "Pod.__init__ Pod.add Pod.find Pod.get Pod.reserve",
    "shim.process": (
        "Process.__init__ Process.close Process.ended Process.exited_at Process.id Process.must_settle "
        "Process.note_exit Process.open_io Process.require_running Process.started"
    ),
    "shim.ps_service": "PsService.__init__ PsService.methods",
    "shim.rootfs_mounts": "_data _plan_one _plan_one.<locals>.<genexpr> plan plan.<locals>.<genexpr>",
    "shim.sandbox_service": "SandboxService.__init__ SandboxService.methods",
    "shim.server": (
        "Connection.__init__ Connection._account Connection._begin Connection._begin_next "
        "Connection._begin_soon Connection._excess Connection._fail Connection._flush Connection._forget "
        "Connection._keeps_up Connection._ready Connection._rearm Connection._receive Connection.answer "
        "Connection.send Server.__init__ Server._accept Server._let_in Server._listen Server.deserted _size"
    ),
    "shim.sockets": "_bind is_served listen make_directory record_socket write_whole",
    "shim.spans": (
        "Spans.__init__ Spans._connect Spans._context Spans._flush Spans._send Spans.emit connect enabled "
        "parse_traceparent"
    ),
    "shim.start_request": (
        "Origin.notes Reply.__init__ Reply._send Reply.accept Reply.send Stdin.__init__ Stdin.close "
        "Stdin.read _borrow _join_cgroups _read_to_end _receive_parts _take_limit _take_oom_score _umask "
        "_write adopt be_patient peer_of receive receive.<locals>.<genexpr>"
    ),
    "shim.stats": "convert convert.<locals>.<genexpr> read",
    "shim.stdio": (
        "PipeIo.__init__ PipeIo._close_child_ends PipeIo._close_child_ends.<locals>.<genexpr> "
        "PipeIo._output_ended PipeIo._output_ended.<locals>.<genexpr> PipeIo._outputs PipeIo.add_output "
        "PipeIo.attach PipeIo.child_fds PipeIo.child_fds.<locals>.<genexpr> PipeIo.close "
        "PipeIo.process_ended _open_for_writing _pipe_beside destination_of open_output open_pipes "
        "plan_outputs"
    ),
    "shim.systemd": "available",
    "shim.task_service": (
        "TaskService.__init__ TaskService._find TaskService._state TaskService._trace TaskService.connect "
        "TaskService.create TaskService.delete TaskService.exec TaskService.kill TaskService.methods "
        "TaskService.start TaskService.state TaskService.stats TaskService.wait _begin"
    ),
    "shim.tasks": (
        "Mutex.__init__ Mutex.acquire Mutex.release Outcome.__init__ Outcome.set Outcome.subscribe "
        "Outcome.unsubscribe Task.__init__ Task._claim Task._end Task._wait_for Task.resume _Wake.__call__ "
        "_Wake.__init__ _Wake.cancel _wait_exit _wait_exit.<locals>.<lambda> _wait_exit.<locals>.release "
        "_wait_for_fd _wait_for_fd.<locals>.<lambda> _wait_for_fd.<locals>.release _wait_outcome "
        "_wait_outcome.<locals>.release _wait_outcome.<locals>.wake_soon _wait_readable _wait_sleep spawn "
        "within within.<locals>.came"
    ),
    "shim.ttrpc.client": "socket_address",
    "shim.ttrpc.connection": (
        "Answer.result Call.header ClientConnection.__init__ ClientConnection._answer "
        "ClientConnection._on_response ClientConnection._open ClientConnection.call "
        "ClientConnection.receive ServerConnection.__init__ ServerConnection._end "
        "ServerConnection._on_request ServerConnection._on_request.<locals>.<genexpr> "
        "ServerConnection._register ServerConnection.fail ServerConnection.held ServerConnection.receive "
        "ServerConnection.respond _pairs _response_frame"
    ),
    "shim.ttrpc.frames": (
        "FrameReader.__init__ FrameReader._cut FrameReader.held FrameReader.receive pack_frame"
    ),
    "shim.ttrpc.status": "RpcError.__init__ code_name",
    "shim.warden": "_attend _leave_house _show",
}
